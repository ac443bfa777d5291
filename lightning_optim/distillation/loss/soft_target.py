"""Soft-target loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.functional import (
    Reduction,
    check_logits,
    check_reduction,
    reduce_positions,
    soft_target_divergences,
    standardize_logits,
)
from lightning_optim.distillation.kernel.blocks import in_blocks
from lightning_optim.distillation.kernel.top import top_soft_target_loss
from lightning_optim.distillation.loss.base import Context
from lightning_optim.distillation.loss.classes import ClassLoss
from lightning_optim.distillation.loss.output import select_output
from lightning_optim.distillation.observation import Observation
from lightning_optim.distillation.top_logits import TopLogits, top_logits_at
from lightning_optim.schedule.factor import Factor


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTarget(ClassLoss):
    """Soft-target loss: the student learns the teacher's class probabilities (Hinton et al., 2015; arXiv:1503.02531).

    With ``standardize``, logits of both networks are first brought to mean 0 and variance 1 over their classes, so that
    the student learns their relations and not their size (Sun et al., 2024; arXiv:2403.01427): worth trying where the
    student is far smaller than its teacher. The temperature is then 1 to 5, and the weight larger.

    Over large vocabularies the divergence is computed a few positions at a time, and again in the backward pass: of
    contiguous logits, no tensor of their size is made besides the gradient.

    Measured: beside the labels it closed 6 % (± 29) of the gap of 1.0 points between a residual net and one of nine
    times its computation; standardized, -20 % (± 28), at the smallest of the weights that were tried (10,000 images of
    Fashion-MNIST, three seeds, ``benchmarks.distillation_accuracy``).

    Args:
        temperature: Softens both softmaxes, above 0; a number, or a schedule over the callback's window. A student far
            smaller than its teacher wants a lower one.
        standardize: Whether logits are standardized first.
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
        >>> import torch
        >>> call = Observation((), {}, torch.tensor([[1.0, 2.0]]))
        >>> float(SoftTarget()(call, call, Context(progress=0.0, batch=None)))
        0.0
    """

    temperature: Factor = 4.0
    standardize: bool = False
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        ClassLoss.__post_init__(self)
        check_reduction(self.reduction)

    @property
    def top_temperature(self) -> float | None:
        """Temperature at which the teacher's likeliest classes are enough; ``None`` if all logits are needed."""
        return None if self.standardize or self.has_schedule else self.temperature_at(0.0)

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        key = self.output if self.teacher_output is None else self.teacher_output
        top = top_logits_at(teacher.output, key)
        if top is not None:
            return self._compare_top(student, top, self.temperature_at(context.progress))
        mine, theirs, class_dim, mask = self.logits(student, teacher)
        check_logits(mine, theirs, class_dim)
        temperature = self.temperature_at(context.progress)

        def divergence(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
            if self.standardize:
                student, teacher = standardize_logits(student, dim), standardize_logits(teacher, dim)
            return soft_target_divergences(student, teacher, temperature, dim)

        found = in_blocks(divergence, mine, theirs, class_dim)
        return temperature**2 * reduce_positions(found, self.reduction, mask)

    def _compare_top(self, student: Observation, top: TopLogits, temperature: float) -> Tensor:
        mine = select_output(student.output, self.output).movedim(self.class_axis(student), -1)
        if mine.shape[-1] != top.num_classes:
            raise ValueError(
                f"the teacher's answers in the cache are of {top.num_classes} classes, the student has "
                f"{mine.shape[-1]}: distil from a teacher with the student's classes"
            )
        theirs = top.log_probabilities(temperature)
        mask = self.valid(student)
        return top_soft_target_loss(mine, top.indices, theirs, temperature, reduction=self.reduction, mask=mask)
