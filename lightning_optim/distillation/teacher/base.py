"""Interface of teachers: where a trained network comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher, Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher(ABC):
    """Teacher: a source of one trained network.

    Args:
        precision: Number format of weights and arithmetic: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            ``None`` runs the teacher as the student is run, under the trainer's own precision.

    Raises:
        ValueError: If the precision is unknown.
    """

    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"precision must be null, 'float32', 'bfloat16' or 'float16', got {self.precision!r}")

    @abstractmethod
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        """Return the teacher, on the CPU or wherever it lies.

        Args:
            student: Finds the student's network; called only by a source that has no architecture of its own.

        Raises:
            ArtefactError: If a file is missing, truncated, unsafe, or of another model.
        """

    def freeze(self, module: nn.Module) -> LoadedTeacher:
        """Let a teacher answer.

        Args:
            module: What ``load`` returned; frozen in place.
        """
        return FrozenTeacher(module, self.precision)
