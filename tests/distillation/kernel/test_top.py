"""The gradient of soft targets of likeliest classes is computed with the loss, and is that of autograd."""

import pytest
import torch

from lightning_optim.distillation import TopLogits
from lightning_optim.distillation.functional import divergence, log_buckets
from lightning_optim.functional import top_soft_target_loss


def seeded(*shape, seed=0):
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_autograd(student, top, theirs, temperature, mask):
    log = (student.float() / temperature).log_softmax(-1)
    rows = divergence(theirs, log_buckets(log, top.indices))
    return temperature**2 * torch.where(mask, rows, 0.0).sum() / mask.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient_are_those_of_autograd(temperature, dtype):
    student = seeded(3, 40, 11).to(dtype).requires_grad_()
    top = TopLogits.of(seeded(3, 40, 11, seed=1), 4, [temperature])
    theirs, mask = top.log_probabilities(temperature), seeded(3, 40, seed=2) > 0
    loss = top_soft_target_loss(student, top.indices, theirs, temperature, mask=mask)
    expected = by_autograd(student, top, theirs, temperature, mask)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(2.0 * each, student)[0] for each in (loss, expected))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)


def test_positions_that_are_masked_out_add_nothing_whatever_they_hold():
    student = seeded(4, 7)
    student[1] = torch.nan
    student.requires_grad_()
    top = TopLogits.of(seeded(4, 7, seed=1), 2, [1.0])
    mask = torch.tensor([True, False, True, True])
    loss = top_soft_target_loss(student, top.indices, top.log_probabilities(1.0), mask=mask)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert not student.grad[1].any()


def test_classes_that_the_student_excludes_have_no_gradient():
    student = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf], [1.0, 2.0, 0.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[1.0, 3.0, -torch.inf, -torch.inf], [0.0, 3.0, -1.0, -torch.inf]])
    top = TopLogits.of(teacher, 2, [1.0])
    top_soft_target_loss(student, top.indices, top.log_probabilities(1.0)).backward()
    assert student.grad.isfinite().all()
    assert not student.grad[:, 3].any()


def test_the_gradient_can_be_taken_again_and_not_be_differentiated():
    student = seeded(2, 5).requires_grad_()
    top = TopLogits.of(seeded(2, 5, seed=1), 2, [1.0])
    loss = top_soft_target_loss(student, top.indices, top.log_probabilities(1.0))
    first, second = (torch.autograd.grad(loss, student, create_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        first.sum().backward()
