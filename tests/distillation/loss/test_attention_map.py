import math

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import AttentionMap


def normalized(columns, p):
    """Columns: for each position the numbers of its channels."""
    sums = [sum(abs(value) ** p for value in column) for column in columns]
    length = math.sqrt(sum(value * value for value in sums))
    return [value / length for value in sums]


def by_hand(student, teacher, p):
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        pairs = zip(normalized(mine, p), normalized(theirs, p), strict=True)
        total += 0.5 * sum((a - b) ** 2 for a, b in pairs)
    return total / len(student)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_it_is_the_formula_on_maps_and_on_tokens(p):
    student, teacher = rand(3, 5, 4), rand(3, 5, 6, seed=1)  # [B, T, C]: channels may differ
    loss = AttentionMap(student="a", p=p)
    expected = by_hand(student, teacher, p)
    assert float(loss.compare(student, teacher, None)) == pytest.approx(expected, rel=1e-5)
    square = rand(3, 4, 2, 2), rand(3, 6, 2, 2, seed=1)
    expected = by_hand(*(each.flatten(2).transpose(1, 2) for each in square), p)
    assert float(loss.compare(*square, None)) == pytest.approx(expected, rel=1e-5)


def test_maps_of_another_size_are_pooled():
    student, teacher = rand(2, 3, 4, 4), rand(2, 5, 2, 2, seed=1)
    energy = (student**2).mean(1, keepdim=True)
    pooled = energy.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    found = AttentionMap(student="a").compare(student, teacher, None)
    torch.testing.assert_close(found, AttentionMap(student="a", p=1.0).compare(pooled, (teacher**2), None))


def test_what_has_no_positions_or_others_is_refused():
    loss = AttentionMap(student="a")
    with pytest.raises(ValueError, match="AttentionMap needs features with several positions"):
        loss.compare(rand(2, 3), rand(2, 3), None)
    with pytest.raises(ValueError, match="the student has 5 of them in 2 samples and the teacher 6"):
        loss.compare(rand(2, 5, 3), rand(2, 6, 3), None)


@pytest.mark.parametrize("p", [0.5, 0.0, float("inf")])
def test_a_power_out_of_range_is_refused(p):
    with pytest.raises(ValueError, match="p must be a number of at least 1"):
        AttentionMap(student="a", p=p)
