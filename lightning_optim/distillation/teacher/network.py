"""Teachers of one network, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType

from torch import nn
from typing_extensions import override

from lightning_optim.distillation.input_map.base import InputMap
from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher, Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTeacher(Teacher):
    """Teacher of one network: a source says where it comes from, and this how it is run.

    Args:
        precision: Number format of weights and arithmetic: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            ``None`` runs the teacher as the student is run, under the trainer's own precision.
        input_map: What the teacher is given where it does not take the inputs of the student's network: an
            ``InputMap`` such as ``Resize`` or ``FromBatch``, or a function of these inputs and the batch. ``None``
            gives it the same.

    Raises:
        ValueError: If the precision is unknown.
    """

    precision: Precision | None = None
    input_map: InputMap | FunctionType | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"precision must be null, 'float32', 'bfloat16' or 'float16', got {self.precision!r}")

    @override
    def freeze(self, module: nn.Module) -> LoadedTeacher:
        return FrozenTeacher(module, self.precision, self.input_map)
