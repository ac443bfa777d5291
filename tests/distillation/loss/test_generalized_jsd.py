import math

import pytest
import torch
from by_hand import compare, rand, softmax

from lightning_optim.distillation import GeneralizedJSD, ReverseKL, SoftTarget


def kl(first, second):
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


def by_hand(student, teacher, temperature, beta):
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(mine, temperature), softmax(theirs, temperature)
        mixture = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
        total += beta * kl(q, mixture) + (1 - beta) * kl(p, mixture)
    return temperature**2 * total


@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 0.5), (2.0, 0.1), (1.0, 0.9)])
def test_it_is_the_formula_over_tokens_that_are_no_padding(temperature, beta):
    student, teacher, mask = rand(2, 3, 5), rand(2, 3, 5, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = GeneralizedJSD(temperature=temperature, beta=beta, mask="attention_mask")
    found = compare(loss, student, teacher, attention_mask=mask)
    expected = by_hand(student[mask.bool()], teacher[mask.bool()], temperature, beta) / 3
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_its_ends_are_the_two_divergences():
    student, teacher = rand(4, 5).double(), rand(4, 5, seed=1).double()
    forward, backward = (compare(loss, student, teacher) for loss in (SoftTarget(temperature=1.0), ReverseKL()))
    near = 1e-6
    torch.testing.assert_close(compare(GeneralizedJSD(beta=near), student, teacher) / near, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        compare(GeneralizedJSD(beta=1 - near), student, teacher) / near, backward, rtol=1e-4, atol=0
    )


def test_padding_has_no_gradient():
    student, mask = rand(2, 3, 5).requires_grad_(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    compare(GeneralizedJSD(mask="m"), student, 1e4 * rand(2, 3, 5, seed=1), m=mask).backward()
    assert not student.grad[~mask.bool()].any()
    assert student.grad[mask.bool()].isfinite().all()


@pytest.mark.parametrize("excluded", ["both", "student", "teacher"])
def test_excluded_classes_have_a_finite_gradient(excluded):
    student, teacher = rand(3, 5), rand(3, 5, seed=1)
    if excluded != "teacher":
        student[:, 2] = -torch.inf
    if excluded != "student":
        teacher[:, 2] = -torch.inf
    student.requires_grad_()
    found = compare(GeneralizedJSD(), student, teacher)
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()
    if excluded == "both":
        kept = [0, 1, 3, 4]
        torch.testing.assert_close(found, compare(GeneralizedJSD(), student[:, kept], teacher[:, kept]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_and_constant_logits_have_a_finite_gradient(dtype):
    for logits in (rand(3, 4), torch.zeros(3, 4), 90.0 * torch.eye(3, 4)):
        student = logits.to(dtype).requires_grad_()
        found = compare(GeneralizedJSD(), student, student.detach())
        found.backward()
        assert found.dtype is torch.float32
        assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"reduction": "none"}, {"beta": 0.0}, {"beta": 1.0}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        GeneralizedJSD(**settings)
