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
from lightning_optim.distillation.observation import Observation


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTarget(Loss):
    """Soft-target loss: the student learns the teacher's class probabilities (Hinton et al., 2015; arXiv:1503.02531).

    Args:
        temperature: Softens both softmaxes, above 0. A student far smaller than its teacher wants a lower one.
        reduction: ``"mean"`` over valid positions, so that the weight does not depend on the batch size, or ``"sum"``.
        class_dim: Axis of the classes: -1 for ``[B, T, C]``, 1 for ``[B, C, height, width]``. ``None`` is what shapes
            tell: the second of two axes, or the one that ``mask`` lacks; of other logits, it must be given.
        output: Where the logits are in the student's output: a key, an index, several joined by dots
            (``"heads.0.logits"``), or ``None`` if they are the output.
        teacher_output: Where they are in the teacher's output; ``None`` is where ``output`` says, or the teacher's
            output itself if that is a tensor.
        mask: Keyword argument of the network's call that marks valid positions, such as ``"attention_mask"``.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> call = Observation((), {}, torch.tensor([[1.0, 2.0]]))
        >>> float(SoftTarget()(call, call, Context(progress=0.0, batch=None)))
        0.0
    """

    temperature: float = 4.0
    reduction: Reduction = "mean"
    class_dim: int | None = None
    output: str | int | None = None
    teacher_output: str | int | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_reduction(self.reduction)

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        student_logits, teacher_logits = select_output(student.output, self.output), self._teacher_logits(teacher)
        if student_logits.ndim < 2:
            raise ValueError(
                f"a soft-target loss needs logits with a class axis, got shape {list(student_logits.shape)}: "
                "a single score per sample has no classes to soften"
            )
        mask = self._mask(student)
        return soft_target_loss(
            student_logits,
            teacher_logits,
            self.temperature,
            reduction=self.reduction,
            class_dim=_class_dim(student_logits, mask) if self.class_dim is None else self.class_dim,
            mask=mask,
        )

    def _teacher_logits(self, teacher: Observation) -> Tensor:
        if self.teacher_output is not None:
            return select_output(teacher.output, self.teacher_output, network="teacher", setting="teacher_output")
        if isinstance(teacher.output, Tensor):
            return teacher.output
        return select_output(teacher.output, self.output, network="teacher", setting="teacher_output")

    def _mask(self, student: Observation) -> Tensor | None:
        if self.mask is None:
            return None
        mask = student.kwargs.get(self.mask)
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"the student's network was called without a tensor {self.mask!r}; its keyword arguments were "
                f"{sorted(student.kwargs) or 'none'}: set mask to one of them or to null"
            )
        return mask.to(torch.bool)


def _class_dim(logits: Tensor, mask: Tensor | None) -> int:
    """Axis of the classes, if the shape of the logits, or that of the mask, leaves no other."""
    if logits.ndim == 2:
        return -1
    shape = list(logits.shape)
    if mask is not None:
        lacking = [dim for dim in range(1, logits.ndim) if [*shape[:dim], *shape[dim + 1 :]] == list(mask.shape)]
        if len(lacking) == 1:
            return lacking[0]
    raise ValueError(
        f"a soft-target loss needs to know the axis of the classes of logits of shape {shape}: set class_dim=-1 if "
        "they are [B, T, C], or class_dim=1 if they are [B, C, H, W]"
    )
