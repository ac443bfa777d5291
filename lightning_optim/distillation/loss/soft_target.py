"""Soft-target loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.functional import Reduction, check_reduction, check_temperature, soft_target_loss
from lightning_optim.distillation.loss.base import Context, Loss
from lightning_optim.distillation.loss.output import select_output
from lightning_optim.surgery.tap import ModuleCall


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTarget(Loss):
    """Soft-target loss: the student learns the teacher's class probabilities (Hinton et al., 2015; arXiv:1503.02531).

    Args:
        temperature: Softens both softmaxes, above 0. A student far smaller than its teacher wants a lower one.
        reduction: ``"mean"`` over valid positions, so that the weight does not depend on the batch size, or ``"sum"``.
        class_dim: Axis of the classes; 1 for a map of ``[B, C, height, width]``.
        output: Where the logits are in the networks' output: a key, an index, or ``None`` if they are the output.
        mask: Keyword argument of the network's call that marks valid positions, such as ``"attention_mask"``.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> call = ModuleCall((), {}, torch.tensor([[1.0, 2.0]]))
        >>> float(SoftTarget()(call, call, Context(progress=0.0, batch=None)))
        0.0
    """

    temperature: float = 4.0
    reduction: Reduction = "mean"
    class_dim: int = -1
    output: str | int | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_reduction(self.reduction)

    @override
    def __call__(self, student: ModuleCall, teacher: ModuleCall, context: Context) -> Tensor:
        student_logits = select_output(student.output, self.output)
        if student_logits.ndim < 2:
            raise ValueError(
                f"a soft-target loss needs logits with a class axis, got shape {list(student_logits.shape)}: "
                "a single score per sample has no classes to soften"
            )
        return soft_target_loss(
            student_logits,
            select_output(teacher.output, self.output),
            self.temperature,
            reduction=self.reduction,
            class_dim=self.class_dim,
            mask=self._mask(student),
        )

    def _mask(self, student: ModuleCall) -> Tensor | None:
        if self.mask is None:
            return None
        mask = student.kwargs.get(self.mask)
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"the network was called without a tensor {self.mask!r}; its keyword arguments were "
                f"{sorted(student.kwargs) or 'none'}: set mask to one of them or to null"
            )
        return mask.to(torch.bool)
