"""Hint loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.loss.feature import FeatureLoss


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Hint(FeatureLoss):
    """Hint loss: the student's features, projected, approach the teacher's: ``mean((r(student) - teacher) ** 2)``.

    FitNets (Romero et al., 2015; arXiv:1412.6550, equation 3, with the mean in place of half the sum).

    The projection ``r`` is a linear map of the channels, learned with the student; where both have as many channels
    there is none. Features are ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]`` (also of one or three axes more); maps of
    another size are brought to the teacher's by adaptive average pooling.

    Use it where the student is built like the teacher, but narrower: between stages of equal resolution, or between
    blocks of transformers. A weight of 1 to 100 is usual for maps, since the mean over many small numbers is small.

    Args:
        student: Places in the student; see ``FeatureLoss``.
        teacher: Places in the teacher.
        projection: ``"auto"`` where channels differ, ``"always"``, or ``"never"``, which refuses channels that differ.
        learning_rate: Of the projection's AdamW, above 0.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> loss = Hint(student="net.0", teacher="0")
        >>> float(loss.compare(torch.zeros(2, 3), torch.ones(2, 3), None))
        1.0
    """

    projection: Literal["auto", "always", "never"] = "auto"
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        FeatureLoss.__post_init__(self)
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}")

    @override
    def make_optimizer(self, tensors: list[Tensor]) -> Optimizer:
        return AdamW(tensors, self.learning_rate)

    @override
    def learn(self, student: Tensor, teacher: Tensor) -> nn.Module | None:
        mine, theirs = (each.shape[channel_axis(each)] for each in (student, teacher))
        if self.projection == "always" or (self.projection == "auto" and mine != theirs):
            return nn.Linear(mine, theirs)
        return None

    @override
    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module | None) -> Tensor:
        if learned is not None:
            axis = channel_axis(student)
            student = learned(student.movedim(axis, -1)).movedim(-1, axis)
        student = at_size_of(teacher, student)
        return F.mse_loss(student.float(), teacher.float())


def channel_axis(features: Tensor) -> int:
    """Axis of the channels: the last of ``[B, C]`` and ``[B, T, C]``, the second of maps."""
    return -1 if features.ndim <= 3 else 1


def at_size_of(teacher: Tensor, student: Tensor) -> Tensor:
    """Bring maps of the student to the teacher's size.

    Raises:
        ValueError: If they still differ, naming what would bridge it.
    """
    if student.ndim == teacher.ndim in (4, 5) and student.shape[2:] != teacher.shape[2:]:
        pool = F.adaptive_avg_pool2d if student.ndim == 4 else F.adaptive_avg_pool3d
        student = pool(student, teacher.shape[2:])  # type: ignore[arg-type]  # two or three sizes, as it needs
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's features have shape {list(student.shape)}, the teacher's {list(teacher.shape)}: choose "
            "places of the same kind and length, or projection='auto' where only the channels differ"
        )
    return student
