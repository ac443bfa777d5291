import itertools

import pytest
import torch

from lightning_optim.pruning.allocation.functional import lamp, share_out


def test_shares_are_the_nearest_whole_numbers_to_the_proportions():
    for total, *wishes in itertools.product(range(1, 12), (1.0, 2.5), (1.0, 3.0), (0.5, 7.0)):
        shares = share_out(total, wishes, [(0, 100)] * 3)
        assert sum(shares) == total
        assert all(abs(share - total * wish / sum(wishes)) < 1.0 for share, wish in zip(shares, wishes, strict=True))


@pytest.mark.parametrize("total", range(15))
def test_bounded_shares_are_the_only_ones_in_proportion_where_they_may_move(total):
    wishes, bounds = [1.0, 4.0, 2.0], [(2, 3), (0, 5), (1, 9)]
    shares = share_out(total, wishes, bounds)
    assert sum(shares) == min(max(total, 3), 17)
    assert all(least <= share <= most for share, (least, most) in zip(shares, bounds, strict=True))
    inside = [index for index in range(3) if bounds[index][0] < shares[index] < bounds[index][1]]
    for one, other in itertools.combinations(inside, 2):  # up to the rounding of each
        assert abs(shares[one] * wishes[other] - shares[other] * wishes[one]) < wishes[one] + wishes[other]


def test_large_numbers_are_exact():
    sizes = [10**9 + 7, 3 * 10**8, 5]
    shares = share_out(10**9, [float(size) for size in sizes], [(0, size) for size in sizes])
    assert sum(shares) == 10**9


def by_definition(scores):
    """Equation 5: sorted in ascending order, each square over the sum of squares from its place on."""
    order = sorted(range(len(scores)), key=lambda index: scores[index])
    found = [0.0] * len(scores)
    for place, index in enumerate(order):
        found[index] = scores[index] ** 2 / sum(scores[later] ** 2 for later in order[place:])
    return found


def test_lamp_is_equation_5():
    scores = torch.rand(30, generator=torch.Generator().manual_seed(0))
    assert lamp(scores.view(5, 6)).flatten().tolist() == pytest.approx(by_definition(scores.tolist()), rel=1e-5)


def test_lamp_leaves_infinities_out_of_every_sum():
    scores = torch.tensor([torch.inf, 2.0, -torch.inf, 1.0])
    assert lamp(scores).tolist() == pytest.approx([torch.inf, 1.0, -torch.inf, 0.2])


def test_lamp_of_nothing_but_zeros_is_zero():
    assert lamp(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_lamp_lets_nan_be_seen():
    assert bool(lamp(torch.tensor([1.0, torch.nan, 2.0])).isnan().any())
