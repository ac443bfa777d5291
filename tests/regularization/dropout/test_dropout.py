"""Dropout against its formula, number by number, and against that of torch in the mean."""

import pytest
import torch

from lightning_optim.regularization import Dropout


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_numbers_are_zero_or_grown_and_the_mean_stays(rate, unit):
    x = torch.rand(64, 32, 5, generator=generator(1)) + 1.0
    y = Dropout(unit=unit)(x, rate, generator())
    dropped = 0
    for own, found in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        assert found == 0.0 or found == pytest.approx(own / (1 - rate))
        dropped += found == 0.0
    count = x.numel() / (1 if unit == "element" else 5)
    spread = (rate * (1 - rate) / count) ** 0.5
    assert dropped / x.numel() == pytest.approx(rate, abs=4 * spread)
    assert float(y.mean()) == pytest.approx(float(x.mean()), rel=0.1 if rate < 0.9 else 0.3)


def test_channels_are_dropped_as_a_whole():
    y = Dropout(unit="channel")(torch.ones(8, 16, 4, 4), 0.5, generator())
    for sample in y:
        for channel in sample:
            assert len(set(channel.flatten().tolist())) == 1
    assert set(y.unique().tolist()) == {0.0, 2.0}


def test_gradients_are_those_of_what_is_kept():
    x = torch.ones(100, requires_grad=True)
    y = Dropout()(x, 0.2, generator())
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
