"""Soft-target loss from logits, in place: no further tensor of their size is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from lightning_optim.distillation.functional import Reduction, check_logits, check_reduction, check_temperature
from lightning_optim.distillation.kernel.divergence import row_weights, soft_target_
from lightning_optim.surgery.precision import computing_dtype


def soft_target_loss_(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    """Soft-target loss that overwrites the teacher's logits with the student's gradient.

    The value is that of ``soft_target_loss`` with the classes along the last axis. Its gradient,
    ``temperature * (softmax(student / temperature) - softmax(teacher / temperature))``, is computed in the forward
    pass, a few rows at a time, and takes the place of the teacher's logits: nothing else of their size is made.

    Args:
        student_logits: Logits ``[..., C]``.
        teacher_logits: Logits of the same shape and number format, contiguous and without gradient; their values are
            lost.
        temperature: Divides both logits; above 0.
        reduction: ``"sum"`` over positions, or ``"mean"`` over the valid ones.
        mask: Which positions are valid; boolean, shaped as the logits without the last axis. ``None``: all.

    Returns:
        A scalar in at least float32. Its gradient can be taken once, and not be differentiated again.

    Raises:
        ValueError: If shapes or number formats differ or are float16, the teacher's logits cannot be overwritten, or a
            setting is out of range.

    Example:
        >>> student, teacher = torch.zeros(1, 2, requires_grad=True), torch.tensor([[0.0, 3.0]]).log_softmax(-1)
        >>> loss = soft_target_loss_(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4), student.grad
        (0.5023, tensor([[ 0.4526, -0.4526]]))
    """
    check_temperature(temperature)
    check_reduction(reduction)
    check_logits(student_logits, teacher_logits, -1)
    if teacher_logits.requires_grad or not teacher_logits.is_contiguous() or teacher_logits.is_inference():
        raise ValueError(
            "the teacher's logits are overwritten, so they must be contiguous and need no gradient, and not come from "
            "inference_mode: compute them under torch.no_grad(), or take soft_target_loss"
        )
    if student_logits.dtype != teacher_logits.dtype:
        raise ValueError(
            f"the student's logits are {student_logits.dtype}, the teacher's {teacher_logits.dtype}: the gradient of "
            "the one is written into the other, so convert the teacher's first"
        )
    if student_logits.dtype == torch.float16:
        raise ValueError(
            "the gradient lies in the number format of the logits before a loss scale has multiplied it, and small "
            "numbers would be 0 in float16: take soft_target_loss, or logits in bfloat16 or float32"
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        settings = (temperature, reduction, mask)
        loss: Tensor = _SoftTarget.apply(student_logits, teacher_logits, *settings)  # type: ignore[no-untyped-call]
    return loss


class _SoftTarget(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, reduction: str, mask: Any) -> Tensor:
        mine, theirs = student.reshape(-1, student.shape[-1]), teacher.view(-1, teacher.shape[-1])
        weights = row_weights(len(mine), mask, reduction, student.new_zeros((), dtype=computing_dtype(student.dtype)))
        total = soft_target_(mine, theirs, weights, temperature, gradient=theirs, is_masked=mask is not None)
        ctx.gradient = teacher
        return total

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "this loss gives its gradient once, since that lies where the teacher's logits were: call backward "
                "once, on the sum of all losses, or take soft_target_loss"
            )
        return gradient.mul_(factor.to(gradient.dtype)), None, None, None, None
