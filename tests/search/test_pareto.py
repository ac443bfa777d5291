import numpy as np
import pytest

from lightning_optim.search import hypervolume, pareto_front
from lightning_optim.search.pareto import front_ranks


def test_the_front_is_what_brute_force_finds():
    costs = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)
    expected = [i for i, row in enumerate(costs) if not any((o <= row).all() and (o < row).any() for o in costs)]
    assert pareto_front(costs.tolist()) == expected


def test_equal_points_both_stand_and_one_point_alone_does():
    assert pareto_front([(1.0, 1.0), (1.0, 1.0), (1.0, 2.0)]) == [0, 1]
    assert pareto_front([(5.0,)]) == [0]
    assert pareto_front([]) == []


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        pareto_front([(1.0, float("nan"))])
    with pytest.raises(ValueError, match="equally many"):
        pareto_front([(1.0,), (1.0, 2.0)])


def test_hypervolume_is_the_share_of_random_points_that_are_dominated():
    draws = np.random.default_rng(0)
    for count in (1, 2, 3):
        points, samples = draws.random((8, count)), draws.random((20000, count))
        share = (samples[:, None] < points).all(axis=2).any(axis=1).mean()
        assert hypervolume(points, [0.0] * count) == pytest.approx(share, abs=0.015)


def test_points_below_the_reference_have_no_volume():
    assert hypervolume([(3.0, 0.5), (1.0, 5.0)], reference=(1.0, 1.0)) == 0.0
    assert hypervolume([], reference=(1.0, 1.0)) == 0.0
    assert hypervolume([(3.0, 2.0), (3.0, 2.0)], reference=(1.0, 1.0)) == 2.0
    with pytest.raises(ValueError, match="rows of 3 scores"):
        hypervolume([(3.0, 2.0)], reference=(1.0, 1.0, 1.0))


def test_ranks_are_those_of_fronts_taken_away_one_after_another():
    costs = np.random.default_rng(1).integers(0, 6, size=(30, 2)).astype(float)
    ranks, left, rank = front_ranks(costs), list(range(30)), 0
    while left:
        front = [left[index] for index in pareto_front(costs[left].tolist())]
        assert {index for index in left if ranks[index] == rank} == set(front)
        left, rank = [index for index in left if index not in front], rank + 1
