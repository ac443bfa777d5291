import math

import pytest
import torch
from by_hand import compare, rand, softmax

from lightning_optim.distillation import ReverseKL


def by_hand(student, teacher, temperature):
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        pairs = zip(softmax(mine, temperature), softmax(theirs, temperature), strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs)
    return temperature**2 * total


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_the_formula_over_tokens_that_are_no_padding(temperature):
    student, teacher, mask = rand(2, 3, 5), rand(2, 3, 5, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = by_hand(student[mask.bool()], teacher[mask.bool()], temperature)
    for reduction, number in (("sum", 1), ("mean", 3)):
        loss = ReverseKL(temperature=temperature, reduction=reduction, mask="attention_mask")
        found = compare(loss, student, teacher, attention_mask=mask)
        assert float(found) == pytest.approx(expected / number, rel=1e-5)


def test_padding_has_no_gradient():
    student, mask = rand(2, 3, 5).requires_grad_(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    compare(ReverseKL(mask="m"), student, 1e4 * rand(2, 3, 5, seed=1), m=mask).backward()
    assert not student.grad[~mask.bool()].any()
    assert student.grad[mask.bool()].isfinite().all()


def test_a_vocabulary_of_another_size_is_refused_and_not_filled_with_zeros():
    with pytest.raises(ValueError, match="5 and 4 classes"):
        compare(ReverseKL(class_dim=-1), rand(2, 3, 4), rand(2, 3, 5))


def test_a_class_that_both_exclude_adds_nothing():
    student, teacher = rand(3, 5), rand(3, 5, seed=1)
    wide = [torch.cat([each, torch.full((3, 1), -torch.inf)], -1).requires_grad_() for each in (student, teacher)]
    found = compare(ReverseKL(), *wide)
    found.backward()
    torch.testing.assert_close(found, compare(ReverseKL(), student, teacher))
    assert wide[0].grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_and_constant_logits_have_a_finite_gradient(dtype):
    for logits in (rand(3, 4), torch.zeros(3, 4), 90.0 * torch.eye(3, 4)):
        student = logits.to(dtype).requires_grad_()
        found = compare(ReverseKL(), student, student.detach())
        found.backward()
        assert found.dtype is torch.float32
        assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"reduction": "batchmean"}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ReverseKL(**settings)
