"""Stochastic depth against its formulas."""

import pytest
import torch

from lightning_optim.regularization import StochasticDepth


def test_samples_are_dropped_as_a_whole_at_the_rate_and_the_mean_stays():
    x = torch.rand(4000, 3, 2, generator=torch.Generator().manual_seed(1)) + 1.0
    y = StochasticDepth()(x, 0.3, torch.Generator().manual_seed(0))
    dropped = 0
    for own, found in zip(x.flatten(1).tolist(), y.flatten(1).tolist(), strict=True):
        if found[0] == 0.0:
            assert found == [0.0] * 6
            dropped += 1
        else:
            assert found == pytest.approx([value / 0.7 for value in own])
    assert dropped / 4000 == pytest.approx(0.3, abs=0.03)
    assert float(y.mean()) == pytest.approx(float(x.mean()), rel=0.05)


def test_a_whole_batch_is_dropped_or_kept():
    x, generator = torch.ones(16, 3), torch.Generator().manual_seed(0)
    found = [StochasticDepth(unit="batch")(x, 0.5, generator).unique().tolist() for _ in range(400)]
    assert set(map(tuple, found)) == {(0.0,), (2.0,)}
    assert sum(each == [0.0] for each in found) / 400 == pytest.approx(0.5, abs=0.1)


def test_rates_grow_with_depth_in_a_straight_line():
    """Survival ``1 - l / L (1 - p_L)`` (equation 4)."""
    survival = [1 - place / 5 * (1 - 0.5) for place in range(1, 6)]
    rates = StochasticDepth().rates(0.5, [0.0] * 5)
    assert [1 - rate for rate in rates] == pytest.approx(survival)
    assert StochasticDepth(decay="none").rates(0.5, [0.0] * 3) == [0.5] * 3
