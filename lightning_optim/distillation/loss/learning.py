"""Bases of feature losses in which something learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from lightning_optim.distillation.loss.feature import FeatureLoss
from lightning_optim.distillation.loss.layout import channel_axis
from lightning_optim.surgery.precision import at_least_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningLoss(FeatureLoss):
    """Feature loss in which something learns.

    Args:
        student: Places in the student; see ``FeatureLoss``.
        teacher: Places in the teacher.
        learning_rate: Of the AdamW of what learns, above 0.
    """

    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        FeatureLoss.__post_init__(self)
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}")

    @override
    def make_optimizer(self, tensors: list[Tensor]) -> Optimizer:
        return AdamW(tensors, self.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedLoss(LearningLoss):
    """Feature loss that first brings the student's channels to the teacher's by a learned linear map.

    Args:
        student: Places in the student; see ``FeatureLoss``.
        teacher: Places in the teacher.
        projection: ``"auto"`` where channels differ, ``"always"``, or ``"never"``, which refuses channels that differ.
        learning_rate: Of the projection's AdamW, above 0.
    """

    projection: Literal["auto", "always", "never"] = "auto"

    @override
    def learn(self, student: Tensor, teacher: Tensor) -> nn.Module | None:
        mine, theirs = (each.shape[channel_axis(each)] for each in (student, teacher))
        if self.projection == "always" or (self.projection == "auto" and mine != theirs):
            return nn.Linear(mine, theirs)
        return None

    def project(self, student: Tensor, learned: nn.Module | None) -> Tensor:
        """The student's features with the teacher's channels.

        Args:
            student: The student's features.
            learned: The projection; ``None`` leaves them as they are.
        """
        if learned is None:
            return student
        axis = channel_axis(student)
        projected: Tensor = learned(at_least_float32(student.movedim(axis, -1)))
        return projected.movedim(-1, axis)
