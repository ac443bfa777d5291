"""Teacher from an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.input_map.base import InputMap
from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher
from lightning_optim.distillation.teacher.onnx_network import ONNXNetwork


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ONNXFile(Teacher):
    """Teacher from an ONNX file, whatever framework it was written by; needs the extra ``export``.

    ONNX Runtime computes its answers on the CPU, as the file says: in the file's number format, and for the file's
    batch, unless that is dynamic. Keyword arguments of the student's network are matched with the file's inputs by
    name, positional ones in the file's order. Several outputs become a dictionary by their names. A file gives its
    output alone, so that losses which look inside the teacher are refused.

    Args:
        path: The file.
        input_map: What the file is given in place of the inputs of the student's network; see ``NetworkTeacher``.

    Raises:
        ArtefactError: In ``load``, if the file is missing, or ONNX Runtime cannot run it.

    Example:
        >>> ONNXFile(path="teacher.onnx").load(lambda: nn.Identity())
        Traceback (most recent call last):
        lightning_optim.errors.ArtefactError: teacher.onnx does not exist; give the path of an ONNX file
    """

    path: str | Path
    input_map: InputMap | FunctionType | None = None

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        return ONNXNetwork(Path(self.path).expanduser())

    @override
    def freeze(self, module: nn.Module) -> LoadedTeacher:
        return FrozenTeacher(module, input_map=self.input_map)
