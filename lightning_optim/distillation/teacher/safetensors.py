"""A teacher from a safetensors file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from typing_extensions import override

from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.weights import existing_file, filled
from lightning_optim.errors import ArtefactError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Safetensors(Teacher):
    """Load weights from a ``.safetensors`` file: a format that cannot hold code.

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
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size
            raise ArtefactError(
                f"{path} is truncated or no safetensors file ({size} bytes); copy or save it again"
            ) from error
        return filled(self.architecture, student, weights, self.prefix, path)
