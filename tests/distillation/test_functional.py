import math

import pytest
import torch
from scipy.special import log_softmax, rel_entr
from torch.nn import functional as F

from lightning_optim.distillation.functional import attention_transfer_loss, soft_target_loss


def random(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def test_hand_worked_soft_target():
    # Teacher 3/4 and 1/4, student 1/2 and 1/2, at temperature 2, two samples alike.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]] * 2)
    student = torch.zeros(2, 2)
    one = 4.0 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(soft_target_loss(student, teacher, 2.0, reduction="sum")) == pytest.approx(2 * one, rel=1e-6)
    assert float(soft_target_loss(student, teacher, 2.0, reduction="mean")) == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_sum_is_the_formula_as_scipy_computes_it(temperature):
    student, teacher = random(5, 7), random(5, 7, seed=1)
    q, p = (log_softmax(logits.numpy() / temperature, axis=-1) for logits in (teacher, student))
    expected = temperature**2 * rel_entr(math.e**q, math.e**p).sum()
    assert float(soft_target_loss(student, teacher, temperature, reduction="sum")) == pytest.approx(expected, rel=1e-12)


def test_mean_is_torchs_batchmean_times_temperature_squared():
    student, teacher = random(6, 10), random(6, 10, seed=1)
    expected = 9 * F.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(soft_target_loss(student, teacher, 3.0), expected)


def test_gradient_is_temperature_times_the_difference_of_probabilities():
    student, teacher = random(4, 6).requires_grad_(), random(4, 6, seed=1)
    soft_target_loss(student, teacher, 2.5, reduction="sum").backward()
    torch.testing.assert_close(student.grad, 2.5 * ((student / 2.5).softmax(-1) - (teacher / 2.5).softmax(-1)).detach())


def test_class_dim_agrees_with_moved_axis():
    student, teacher = random(2, 5, 3, 4), random(2, 5, 3, 4, seed=1)
    expected = soft_target_loss(student.movedim(1, -1), teacher.movedim(1, -1), 2.0)
    torch.testing.assert_close(soft_target_loss(student, teacher, 2.0, class_dim=1), expected)


def test_mask_leaves_the_mean_of_valid_positions():
    student, teacher = random(2, 3, 5), random(2, 3, 5, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = soft_target_loss(student[mask], teacher[mask], 2.0)
    torch.testing.assert_close(soft_target_loss(student, teacher, 2.0, mask=mask), expected)


def test_no_valid_position_gives_zero_and_zero_gradient():
    student = random(2, 5).requires_grad_()
    loss = soft_target_loss(student, random(2, 5, seed=1), mask=torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert not student.grad.any()


def test_class_that_both_exclude_adds_nothing():
    student, teacher = random(3, 5), random(3, 5, seed=1)
    wide_student = torch.cat([student, torch.full((3, 1), -torch.inf)], -1).requires_grad_()
    wide_teacher = torch.cat([teacher, torch.full((3, 1), -torch.inf)], -1)
    loss = soft_target_loss(wide_student, wide_teacher, 2.0)
    loss.backward()
    torch.testing.assert_close(loss, soft_target_loss(student, teacher, 2.0))
    assert wide_student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student, teacher = random(4, 1000).bfloat16(), random(4, 1000, seed=1).bfloat16()
    loss = soft_target_loss(student, teacher, 4.0)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(
        loss, soft_target_loss(student.double(), teacher.double(), 4.0).float(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "message"),
    [
        ((4, 10), (4, 100), {}, "100 and 10 classes"),
        ((4, 10), (1, 10), {}, r"\[1, 10\]"),
        ((4, 10), (10,), {}, r"\[10\]"),
        ((4, 1), (4, 1), {}, "at least two classes"),
        ((4, 10), (4, 10), {"temperature": 0.0}, "temperature must be"),
        ((4, 10), (4, 10), {"temperature": math.nan}, "temperature must be"),
        ((4, 10), (4, 10), {"class_dim": 2}, "class_dim=2"),
        ((4, 10), (4, 10), {"reduction": "none"}, "reduction must be"),
        ((4, 10), (4, 10), {"mask": torch.ones(4, 1, dtype=torch.bool)}, r"mask has shape \[4, 1\]"),
    ],
)
def test_bad_input_is_refused(student, teacher, settings, message):
    with pytest.raises(ValueError, match=message):
        soft_target_loss(torch.zeros(student), torch.zeros(teacher), **settings)


def test_attention_sum_is_the_formula_as_scipy_computes_it():
    student, teacher = random(2, 3, 4, 4).softmax(-1), random(2, 3, 4, 4, seed=1).softmax(-1)
    expected = rel_entr(teacher.numpy(), student.numpy()).sum()
    assert float(attention_transfer_loss(student, teacher, reduction="sum")) == pytest.approx(expected, rel=1e-12)
    assert float(attention_transfer_loss(student, teacher)) == pytest.approx(expected / 24, rel=1e-12)


def test_hand_worked_attention():
    teacher, student = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]), torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(attention_transfer_loss(student, teacher, reduction="sum")) == pytest.approx(expected, rel=1e-6)


def test_causal_attention_has_a_finite_gradient():
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    scores = random(2, 4, 4).requires_grad_()
    student = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    teacher = random(2, 4, 4, seed=1).masked_fill(~causal, -torch.inf).softmax(-1)
    loss = attention_transfer_loss(student, teacher, reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(rel_entr(teacher.numpy(), student.detach().numpy()).sum(), rel=1e-12)
    torch.testing.assert_close(scores.grad, (student - teacher).detach())


def test_attention_of_other_head_count_is_refused():
    with pytest.raises(ValueError, match="number of heads"):
        attention_transfer_loss(torch.ones(1, 2, 3, 3) / 3, torch.ones(1, 4, 3, 3) / 3)
