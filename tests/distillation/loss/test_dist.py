import math

import pytest
import torch
from by_hand import compare, rand, softmax

from lightning_optim.distillation import DIST
from lightning_optim.errors import SampleError


def distance(first, second):
    a, b = ([value - sum(each) / len(each) for value in each] for each in (first, second))
    norms = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return 1.0 - sum(x * y for x, y in zip(a, b, strict=True)) / norms


def by_hand(student, teacher, temperature, beta, gamma):
    mine, theirs = ([softmax(row, temperature) for row in each.tolist()] for each in (student, teacher))
    inter = [distance(*rows) for rows in zip(mine, theirs, strict=True)]
    intra = [distance(*columns) for columns in zip(zip(*mine, strict=True), zip(*theirs, strict=True), strict=True)]
    return temperature**2 * (beta * sum(inter) / len(inter) + gamma * sum(intra) / len(intra))


@pytest.mark.parametrize(("temperature", "beta", "gamma"), [(1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (4.0, 2.0, 3.0)])
def test_it_is_the_formula_of_the_paper(temperature, beta, gamma):
    student, teacher = rand(6, 4), rand(6, 4, seed=1)
    found = compare(DIST(temperature=temperature, beta=beta, gamma=gamma), student, teacher)
    assert float(found) == pytest.approx(by_hand(student, teacher, temperature, beta, gamma), rel=1e-5)


def test_classes_are_the_last_axis_of_tokens_and_padding_is_left_out():
    student, teacher, mask = rand(2, 3, 5), rand(2, 3, 5, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = compare(DIST(mask="m"), student, teacher, m=mask)
    expected = by_hand(student[mask.bool()], teacher[mask.bool()], 1.0, 1.0, 1.0)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    dense = compare(DIST(class_dim=1), student.movedim(-1, 1), teacher.movedim(-1, 1))
    torch.testing.assert_close(dense, compare(DIST(class_dim=-1), student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "student", [rand(3, 4), torch.zeros(3, 4), torch.ones(3, 1) * rand(1, 4), rand(3, 1).expand(3, 4)]
)
def test_gradients_are_finite_where_nothing_varies(student, dtype):
    student = student.to(dtype).clone().requires_grad_()
    for teacher in (student.detach(), torch.zeros(3, 4, dtype=dtype), rand(3, 4, seed=1).to(dtype)):
        found = compare(DIST(), student, teacher)
        found.backward()
        assert found.dtype is torch.float32
        assert student.grad.abs().max() < 100.0  # and not what a division by almost nothing makes of rounding


def test_a_batch_of_one_is_refused():
    with pytest.raises(SampleError, match="DIST compares samples with each other and needs at least 2"):
        compare(DIST(), rand(1, 4), rand(1, 4, seed=1))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"beta": -1.0}, {"gamma": float("inf")}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        DIST(**settings)
