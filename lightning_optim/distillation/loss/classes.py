"""Base of losses that compare class probabilities."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from typing_extensions import override

from lightning_optim.distillation.functional import (
    Reduction,
    check_logits,
    check_reduction,
    check_temperature,
    reduce_positions,
)
from lightning_optim.distillation.kernel.blocks import in_blocks
from lightning_optim.distillation.loss.base import Context
from lightning_optim.distillation.loss.output import OutputLoss, select_output
from lightning_optim.distillation.observation import Observation
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.factor import Factor, factor_at
from lightning_optim.surgery.precision import at_least_float32


class ClassLogits(NamedTuple):
    """Logits of both networks.

    Args:
        student: The student's.
        teacher: The teacher's.
        class_dim: Axis of the classes.
        mask: Which positions are valid; ``None``: all.
    """

    student: Tensor
    teacher: Tensor
    class_dim: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoss(OutputLoss):
    """Class loss: compares the class probabilities of the two networks, each softened by a temperature.

    Args:
        temperature: Softens both softmaxes, above 0; a number, or a schedule over the callback's window.
        class_dim: Axis of the classes: -1 for ``[B, T, C]``, 1 for ``[B, C, height, width]``. ``None`` is what shapes
            tell: the second of two axes, or the one that ``mask`` lacks; of other logits, it must be given.
        output: Where the logits are in the student's output; see ``OutputLoss``.
        teacher_output: Where they are in the teacher's output.
        mask: Keyword argument of the network's call that marks valid positions.
    """

    temperature: Factor = 1.0
    class_dim: int | None = None

    def __post_init__(self) -> None:
        check_temperatures(self.temperature)

    @property
    @override
    def has_schedule(self) -> bool:
        return isinstance(self.temperature, Schedule)

    def temperature_at(self, progress: float) -> float:
        """The temperature, of a schedule at ``progress`` in ``[0, 1]``.

        Raises:
            ValueError: If the schedule comes to a value there that is not above 0.
        """
        temperature = factor_at(self.temperature, progress)
        check_temperature(temperature)
        return temperature

    def logits(self, student: Observation, teacher: Observation) -> ClassLogits:
        """The logits of both calls, the axis of their classes, and which of their positions are valid.

        Raises:
            ValueError: If there are none, or the axis of the classes is not known.
        """
        mine, theirs = self.outputs(student, teacher)
        return ClassLogits(mine, theirs, self.class_axis(student), self.valid(student))

    def class_axis(self, student: Observation) -> int:
        """Axis of the classes of the student's logits.

        Args:
            student: The student's call.

        Raises:
            ValueError: If there are no such logits, or the axis is not known.
        """
        logits = select_output(student.output, self.output)
        if logits.ndim < 2:
            raise ValueError(
                f"{_words(self)} needs logits with a class axis, got shape {list(logits.shape)}: "
                "a single score per sample has no classes to soften"
            )
        return _class_dim(logits, self.valid(student), _words(self)) if self.class_dim is None else self.class_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceLoss(ClassLoss):
    """Divergence loss: ``temperature ** 2`` times a divergence of the two softmaxes at each position.

    Over large vocabularies it is computed a few positions at a time, and again in the backward pass.

    Args:
        temperature: Softens both softmaxes; see ``ClassLoss``.
        reduction: ``"mean"`` over valid positions, or ``"sum"``. Classes are summed in either case.
        class_dim: Axis of the classes.
        output: Where the logits are in the student's output.
        teacher_output: Where they are in the teacher's output.
        mask: Keyword argument of the network's call that marks valid positions.
    """

    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        ClassLoss.__post_init__(self)
        check_reduction(self.reduction)

    @override
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        mine, theirs, class_dim, mask = self.logits(student, teacher)
        check_logits(mine, theirs, class_dim)
        temperature = self.temperature_at(context.progress)

        def divergence(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
            my_log, their_log = (
                (at_least_float32(logits) / temperature).log_softmax(dim) for logits in (student, teacher)
            )
            return self.divergences(my_log, their_log, dim)

        found = in_blocks(divergence, mine, theirs, class_dim)
        return temperature**2 * reduce_positions(found, self.reduction, mask)

    @abstractmethod
    def divergences(self, student_log: Tensor, teacher_log: Tensor, class_dim: int) -> Tensor:
        """Return the divergence at each position, summed over classes.

        Args:
            student_log: Logarithms of the student's probabilities.
            teacher_log: Those of the teacher's.
            class_dim: Axis of the classes.
        """


def check_temperatures(temperature: Factor) -> None:
    """Refuse a temperature, or the first and the last of a schedule, that is not a number above 0.

    Raises:
        ValueError: If it is not.
    """
    for progress in (0.0, 1.0):
        check_temperature(factor_at(temperature, progress))


def _words(loss: ClassLoss) -> str:
    return f"a {type(loss).__name__} loss"


def _class_dim(logits: Tensor, mask: Tensor | None, loss: str) -> int:
    """Axis of the classes, if the shape of the logits, or that of the mask, leaves no other."""
    if logits.ndim == 2:
        return -1
    shape = list(logits.shape)
    if mask is not None:
        lacking = [dim for dim in range(1, logits.ndim) if [*shape[:dim], *shape[dim + 1 :]] == list(mask.shape)]
        if len(lacking) == 1:
            return lacking[0]
    raise ValueError(
        f"{loss} needs to know the axis of the classes of logits of shape {shape}: set class_dim=-1 if "
        "they are [B, T, C], or class_dim=1 if they are [B, C, H, W]"
    )
