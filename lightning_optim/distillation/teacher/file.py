"""Teachers whose weights lie in a file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.weights import existing_file, filled


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTeacher(Teacher):
    """Teacher from a file: a network is filled with the weights in it.

    Args:
        precision: Number format of the teacher; see ``Teacher``.
        path: The file.
        architecture: The module that the weights belong to; ``None`` takes a copy of the student's network.
        prefix: What stands before the network's names in the file, such as ``"net."``; ``None`` finds it.
    """

    path: str | Path
    architecture: nn.Module | None = None
    prefix: str | None = None

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        path = existing_file(self.path)
        return filled(self.architecture, student, self.read(path), self.prefix, path)

    @abstractmethod
    def read(self, path: Path) -> Mapping[str, Tensor]:
        """Return the weights of a file that is there, by name.

        Raises:
            ArtefactError: If it is truncated, unsafe, or holds no weights.
        """
