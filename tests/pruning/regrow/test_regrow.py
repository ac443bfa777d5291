import math

import pytest
import torch

from lightning_optim.pruning import GradientRegrowth, RandomRegrowth
from lightning_optim.pruning.regrow.base import decayed
from lightning_optim.pruning.regrow.functional import exchange


def by_hand(keep, weight, growth_score, fraction):
    """Sort, drop, sort, grow: the algorithm as the paper writes it."""
    left = [int(i) for i in keep.flatten().nonzero()]
    count = round(fraction * len(left))
    left.sort(key=lambda i: abs(float(weight.flatten()[i])))
    stay = left[count:]
    others = sorted((i for i in range(keep.numel()) if i not in stay), key=lambda i: -float(growth_score.flatten()[i]))
    grown = torch.zeros(keep.numel(), dtype=torch.bool)
    grown[stay + others[:count]] = True
    return grown.view_as(keep)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_the_exchange_is_the_papers(fraction):
    generator = torch.Generator().manual_seed(1)
    for shape in ((7, 5), (3, 2, 3, 3), (1, 4)):
        keep = torch.rand(shape, generator=generator) < 0.4
        weight = torch.randn(shape, generator=generator) * keep
        growth_score = torch.rand(shape, generator=generator)
        found = exchange(keep, weight, growth_score, fraction)
        assert torch.equal(found, by_hand(keep, weight, growth_score, fraction))
        assert found.sum() == keep.sum()


def test_the_number_of_weights_stays_with_ties_and_negative_zeros():
    keep = torch.tensor([True] * 5 + [False] * 5)
    for weight in (torch.zeros(10), -torch.zeros(10), torch.ones(10)):
        for growth_score in (torch.zeros(10), torch.ones(10)):
            assert exchange(keep, weight, growth_score, 0.4).sum() == 5


def test_what_is_no_number_is_refused():
    keep, clean = torch.tensor([True, False]), torch.ones(2)
    dirty = torch.tensor([1.0, torch.nan])
    for weight, growth_score in ((dirty, clean), (clean, dirty), (dirty.flip(0), clean), (clean, dirty.flip(0))):
        with pytest.raises(ValueError, match="NaN"):
            exchange(keep, weight, growth_score, 0.5)


def test_the_share_falls_along_a_cosine_to_nothing():
    assert [decayed(0.4, step / 4) for step in range(5)] == pytest.approx(
        [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5)), 0.0]
    )


def test_random_regrowth_depends_on_the_seeds_alone():
    weight = torch.zeros(50)
    first = RandomRegrowth(seed=1).growth_score(weight, None, seed=2)
    torch.manual_seed(99)
    assert torch.equal(first, RandomRegrowth(seed=1).growth_score(weight, None, seed=2))
    assert not torch.equal(first, RandomRegrowth(seed=1).growth_score(weight, None, seed=3))
    assert not torch.equal(first, RandomRegrowth(seed=2).growth_score(weight, None, seed=2))


def test_gradient_regrowth_needs_a_gradient():
    with pytest.raises(ValueError, match="needs the gradient"):
        GradientRegrowth().growth_score(torch.zeros(2), None, seed=0)


@pytest.mark.parametrize("regrowth", [RandomRegrowth, GradientRegrowth])
@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan])
def test_a_share_out_of_range_is_refused(regrowth, fraction):
    with pytest.raises(ValueError, match="fraction must be in"):
        regrowth(fraction=fraction)
