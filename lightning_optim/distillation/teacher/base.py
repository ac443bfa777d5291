"""Interface of teachers: where a trained network comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import nn

from lightning_optim.distillation.teacher.loaded import LoadedTeacher


class Teacher(ABC):
    """Teacher: a source of a trained network, or of several that answer as one."""

    @abstractmethod
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        """Return the teacher, on the CPU or wherever it lies.

        Args:
            student: Finds the student's network; called only by a source that has no architecture of its own.

        Raises:
            ArtefactError: If a file is missing, truncated, unsafe, or of another model.
        """

    @abstractmethod
    def freeze(self, module: nn.Module) -> LoadedTeacher:
        """Let a teacher answer.

        Args:
            module: What ``load`` returned; frozen in place.
        """
