"""Mixup against its formula, worked sample by sample."""

from random import Random

import pytest
import torch

from lightning_optim.errors import SampleError
from lightning_optim.regularization import Mixup


def test_samples_are_weighted_means():
    first, second = torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([[3.0, 6.0], [0.0, -8.0]])
    blend = Mixup(alpha=0.4).draw(Random(0), [first])
    mixed = blend.combine(first, second)
    for row in range(2):
        for column in range(2):
            own, other = float(first[row, column]), float(second[row, column])
            assert float(mixed[row, column]) == pytest.approx(blend.weight * own + (1 - blend.weight) * other)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_are_of_the_beta_distribution(alpha):
    """Mean 1/2 and variance ``1 / (4 (2 alpha + 1))``."""
    random = Random(0)
    weights = torch.tensor([Mixup(alpha=alpha).draw(random, []).weight for _ in range(20000)])
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(weights.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_tiny_alpha_gives_weights_in_range():
    random = Random(0)
    assert all(0.0 <= Mixup(alpha=1e-3).draw(random, []).weight <= 1.0 for _ in range(1000))


def test_integers_have_no_mean():
    with pytest.raises(SampleError, match=r"needs floating point, got torch\.uint8: convert them"):
        Mixup().draw(Random(0), [torch.zeros(2, 3, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="alpha must be above 0, got 0"):
        Mixup(alpha=0.0)
