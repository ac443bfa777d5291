"""Teachers that are made of the student itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from lightning_optim.distillation.teacher.loaded import LoadedTeacher
from lightning_optim.distillation.teacher.network import NetworkTeacher
from lightning_optim.distillation.teacher.student_copy import StudentCopy, Update
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.torch_private import uncompiled


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentTeacher(NetworkTeacher):
    """Teacher made of the student: a copy of its network, begun anew with each fit and kept in checkpoints.

    Args:
        precision: Number format of the teacher; see ``NetworkTeacher``.
        input_map: What the teacher is given; see ``NetworkTeacher``.
        device: Where it computes; see ``NetworkTeacher``.
        compile: Whether it is compiled; see ``NetworkTeacher``.
    """

    @final
    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        return copy_model(uncompiled(student()))

    @final
    @override
    def freeze(self, module: nn.Module) -> LoadedTeacher:
        return self.frozen(module, [StudentCopy(module, self.update)])

    @property
    @abstractmethod
    def update(self) -> Update | None:
        """What becomes of a weight of the teacher after each step of the student; ``None`` if it stays as it is."""
