"""Soft targets of likeliest classes: the gradient is computed with the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from lightning_optim.distillation.functional import (
    Reduction,
    check_reduction,
    check_temperature,
    divergence,
    log_buckets,
)
from lightning_optim.distillation.kernel.divergence import row_blocks, row_weights, weighted_
from lightning_optim.surgery.precision import computing_dtype, wide_in_range


def top_soft_target_loss(
    student_logits: Tensor,
    indices: Tensor,
    teacher_log: Tensor,
    temperature: float = 1.0,
    *,
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    """Soft-target loss over the teacher's likeliest classes and, as one more, all others together.

    ``temperature ** 2 * sum_i sum_b q_i(b) * log(q_i(b) / p_i(b))`` over k + 1 buckets; the last one's probability is
    the sum of its classes'. The gradient in the logit of a class of the last bucket is
    ``temperature * p(c) * (1 - q(rest) / p(rest))``, that of any other ``temperature * (p(c) - q(c))``. It is
    computed with the loss, a block of rows at a time, so that beside it no tensor of all classes is held.

    Args:
        student_logits: Logits ``[..., C]``.
        indices: The teacher's k likeliest classes, ``[..., k]``.
        teacher_log: Logarithms of their probabilities at that temperature and, last, of all others', ``[..., k + 1]``.
        temperature: Divides the student's logits, as it did the teacher's; above 0.
        reduction: ``"sum"`` over positions, or ``"mean"`` over the valid ones.
        mask: Which positions are valid; boolean, shaped as the logits without their last axis. ``None``: all.

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: If positions differ, or a setting is out of range.

    Example:
        >>> student, teacher = torch.zeros(1, 4), torch.tensor([[0.5, 0.5]]).log()
        >>> round(float(top_soft_target_loss(student, torch.tensor([[2]]), teacher)), 4)
        0.1438
    """
    check_temperature(temperature)
    if student_logits.shape[:-1] != indices.shape[:-1]:
        raise ValueError(
            f"the student's logits have shape {list(student_logits.shape)}, the teacher's likeliest classes "
            f"{list(indices.shape)}: all axes but the last must be the same"
        )
    check_reduction(reduction)
    with torch.autocast(student_logits.device.type, enabled=False):
        settings = (temperature, reduction, mask)
        loss: Tensor = _TopSoftTarget.apply(wide_in_range(student_logits), indices, teacher_log, *settings)  # type: ignore[no-untyped-call]
    return loss


class _TopSoftTarget(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, student: Tensor, indices: Tensor, teacher: Tensor, temperature: float, reduction: str, mask: Any
    ) -> Tensor:
        dtype, classes, buckets = computing_dtype(student.dtype), student.shape[-1], teacher.shape[-1]
        rows, top, theirs = student.reshape(-1, classes), indices.reshape(-1, buckets - 1), teacher.reshape(-1, buckets)
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        total = student.new_zeros((), dtype=dtype)
        weights = row_weights(len(rows), mask, reduction, total)
        for block in row_blocks(rows):
            log = (rows[block].to(dtype) / temperature).log_softmax(-1)
            mine, other, weight = log_buckets(log, top[block]), theirs[block].to(dtype), weights[block]
            total += torch.where(weight > 0, divergence(other, mine), 0.0).dot(weight)
            if gradient is not None:
                gradient[block] = weighted_(_gradient_(log, top[block], mine, other), weight, temperature)
        ctx.save_for_backward(gradient)
        ctx.shape = student.shape
        return total * temperature**2

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * factor.to(gradient.dtype)).view(ctx.shape), None, None, None, None, None


def _gradient_(log: Tensor, top: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
    """Gradient of each row in its logits; written over the logarithms of the student's probabilities."""
    excess = torch.where(mine[:, -1:] > -torch.inf, -torch.expm1(theirs[:, -1:] - mine[:, -1:]), 0.0)
    return log.exp_().mul_(excess).scatter_(-1, top, mine[:, :-1].exp() - theirs[:, :-1].exp())
