"""Soft-target loss from hidden states and the two heads' weights, without logits of all positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from lightning_optim.distillation.functional import Reduction, check_reduction, check_temperature
from lightning_optim.distillation.kernel.divergence import row_weights, soft_target_
from lightning_optim.surgery.precision import computing_dtype, wide_in_range

# Positions of a block: enough that products of matrices are fast, few enough that two blocks of logits are small beside
# the whole.
_BLOCKS, _FEWEST, _MOST = 16, 16, 256


def soft_target_loss_from_hidden(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    temperature: float = 1.0,
    *,
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    """Soft-target loss between what two heads would say of two hidden states.

    The value is that of ``soft_target_loss`` on the logits ``hidden @ weight.T``. They are made for a few positions at
    a time, with their part of the gradient, so that ``[positions, classes]`` is never held: for large vocabularies.

    Args:
        student: Hidden states ``[..., H]`` and the head's weight ``[C, H]``.
        teacher: The teacher's hidden states, ``[..., G]`` with as many positions, and its head's weight ``[C, G]``,
            without gradient.
        temperature: Divides the logits; above 0.
        reduction: ``"sum"`` over positions, or ``"mean"`` over the valid ones.
        mask: Which positions are valid; boolean, shaped as the hidden states without the last axis. ``None``: all.

    Returns:
        A scalar in at least float32. Its gradient cannot be differentiated again.

    Raises:
        ValueError: If shapes disagree, or a setting is out of range.

    Example:
        >>> hidden, weight = torch.ones(1, 1), torch.zeros(2, 1, requires_grad=True)
        >>> loss = soft_target_loss_from_hidden((hidden, weight), (torch.ones(1, 1), torch.tensor([[0.0], [3.0]])))
        >>> round(loss.item(), 4)
        0.5023
    """
    check_temperature(temperature)
    check_reduction(reduction)
    _check_shapes(*student, *teacher)
    student, teacher = (
        (wide_in_range(hidden), weight.to(wide_in_range(hidden).dtype)) for hidden, weight in (student, teacher)
    )
    with torch.autocast(student[0].device.type, enabled=False):
        loss: Tensor = _SoftTarget.apply(*student, *teacher, temperature, reduction, mask)  # type: ignore[no-untyped-call]
    return loss


def _check_shapes(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> None:
    if teacher_hidden.requires_grad or teacher_weight.requires_grad:
        raise ValueError("the teacher's hidden states and weight get no gradient: compute them under torch.no_grad()")
    for whose, states, head in (("student", hidden, weight), ("teacher", teacher_hidden, teacher_weight)):
        if head.ndim != 2 or states.shape[-1] != head.shape[-1]:
            raise ValueError(
                f"the {whose}'s hidden states have shape {list(states.shape)}, its head's weight {list(head.shape)}: "
                "it needs [classes, width of the hidden states]"
            )
    if hidden.shape[:-1] != teacher_hidden.shape[:-1] or len(weight) != len(teacher_weight):
        raise ValueError(
            f"the student has hidden states {list(hidden.shape)} and {len(weight)} classes, the teacher "
            f"{list(teacher_hidden.shape)} and {len(teacher_weight)}: distil from a teacher with the student's inputs "
            "and vocabulary"
        )


class _SoftTarget(torch.autograd.Function):
    @staticmethod
    @override
    def forward(  # what autograd hands over stands in one row
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        temperature: float,
        reduction: str,
        mask: Tensor | None,
    ) -> Tensor:
        mine, theirs = (states.reshape(-1, states.shape[-1]) for states in (hidden, teacher_hidden))
        total = hidden.new_zeros((), dtype=computing_dtype(hidden.dtype))
        weights = row_weights(len(mine), mask, reduction, total)
        if mask is not None:
            # What stands there may be no number, and 0 times that would be none in the weight's gradient.
            mine, theirs = (states.masked_fill((weights == 0).unsqueeze(-1), 0.0) for states in (mine, theirs))
        to_hidden = torch.empty_like(mine) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        size = min(max(len(mine) // _BLOCKS, _FEWEST), _MOST)
        buffers = [head.new_empty(min(size, len(mine)), len(head)) for head in (weight, teacher_weight)]
        for start in range(0, len(mine), size):
            block = slice(start, min(start + size, len(mine)))
            logits, other = (buffer[: block.stop - start] for buffer in buffers)
            torch.mm(mine[block], weight.T, out=logits)
            torch.mm(theirs[block], teacher_weight.T, out=other)
            total += soft_target_(logits, other, weights[block], temperature, gradient=logits, is_masked=False)
            gradient = logits  # overwritten
            if to_hidden is not None:
                torch.mm(gradient, weight, out=to_hidden[block])
            if to_weight is not None:
                to_weight.addmm_(gradient.T, mine[block])
        ctx.save_for_backward(None if to_hidden is None else to_hidden.view_as(hidden), to_weight)
        return total

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        scaled = (None if each is None else each * factor.to(each.dtype) for each in ctx.saved_tensors)
        return *scaled, None, None, None, None, None
