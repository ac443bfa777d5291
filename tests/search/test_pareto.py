import numpy as np
import pytest

from lightning_optim.search import pareto_front


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
