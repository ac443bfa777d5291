import itertools
import math

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import RKD
from lightning_optim.errors import SampleError


def huber(difference):
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def distances(rows):
    found = {(i, j): math.dist(rows[i], rows[j]) for i, j in itertools.permutations(range(len(rows)), 2)}
    mean = sum(found.values()) / len(found)
    return {pair: value / mean for pair, value in found.items()}


def angles(rows):
    found = {}
    for i, j, k in itertools.permutations(range(len(rows)), 3):
        first, second = ([a - b for a, b in zip(rows[end], rows[j], strict=True)] for end in (i, k))
        product = sum(a * b for a, b in zip(first, second, strict=True))
        found[i, j, k] = product / (math.hypot(*first) * math.hypot(*second))
    return found


def by_hand(relation, student, teacher):
    mine, theirs = relation(student.tolist()), relation(teacher.tolist())
    return sum(huber(mine[key] - theirs[key]) for key in mine) / len(mine)


@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
def test_it_is_the_formula_over_distinct_samples(distance, angle):
    student, teacher = rand(5, 3), rand(5, 4, seed=1) ** 3
    found = RKD(student="a", distance_weight=distance, angle_weight=angle).compare(student, teacher, None)
    expected = distance * by_hand(distances, student, teacher) + angle * by_hand(angles, student, teacher)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_maps_and_tokens_are_averaged_over_their_positions():
    maps, tokens = rand(4, 3, 2, 2), rand(4, 5, 3, seed=1)
    loss = RKD(student="a")
    torch.testing.assert_close(loss.compare(maps, tokens, None), loss.compare(maps.mean((2, 3)), tokens.mean(1), None))


def test_too_few_samples_are_refused_by_name():
    with pytest.raises(SampleError, match="RKD compares samples with each other and needs at least 3"):
        RKD(student="a").compare(rand(2, 3), rand(2, 3), None)
    with pytest.raises(SampleError, match=r"needs at least 2 of them in a batch, got 1: .*drop_last"):
        RKD(student="a", angle_weight=0.0).compare(rand(1, 3), rand(1, 3), None)
    assert RKD(student="a", angle_weight=0.0).compare(rand(2, 3), rand(2, 3, seed=1), None).isfinite()


@pytest.mark.parametrize(
    "settings",
    [{"distance_weight": -1.0}, {"angle_weight": float("nan")}, {"distance_weight": 0.0, "angle_weight": 0.0}],
)
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RKD(student="a", **settings)
