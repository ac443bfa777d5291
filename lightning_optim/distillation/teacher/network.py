"""Teachers of one network, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import final

import torch
from torch import nn
from typing_extensions import override

from lightning_optim.distillation.input_map.base import InputMap
from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.frozen import FrozenTeacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher, Precision
from lightning_optim.distillation.teacher.student_copy import StudentCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTeacher(Teacher):
    """Teacher of one network: a source says where it comes from, and this how it is run.

    Args:
        precision: Number format of weights and arithmetic: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            ``None`` runs the teacher as the student is run, under the trainer's own precision.
        input_map: What the teacher is given where it does not take the inputs of the student's network: an
            ``InputMap`` such as ``Resize`` or ``FromBatch``, or a function of these inputs and the batch. ``None``
            gives it the same.
        device: Where the teacher computes, such as ``"cpu"`` or ``"cuda:1"``; ``None`` is where the student is trained.
            A teacher that ``fully_shard`` has sharded stays where it is.
        compile: Whether it is compiled by ``torch.compile``, or the backend to compile it by. Weights that never change
            are made a part of the graph.

    Raises:
        ValueError: If precision or device is unknown.
    """

    precision: Precision | None = None
    input_map: InputMap | FunctionType | None = None
    device: str | None = None
    compile: bool | str = False

    def __post_init__(self) -> None:
        if self.precision not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"precision must be null, 'float32', 'bfloat16' or 'float16', got {self.precision!r}")
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"device must be a device of torch, such as 'cpu' or 'cuda:1', got {self.device!r}"
                ) from error

    @override
    def freeze(self, module: nn.Module) -> LoadedTeacher:
        return self.frozen(module)

    @final
    def frozen(self, module: nn.Module, copies: Sequence[StudentCopy] = ()) -> FrozenTeacher:
        """Run a network as these settings say.

        Args:
            module: The network; frozen in place.
            copies: The copies of the student that it is made of.
        """
        backend = "inductor" if self.compile is True else self.compile or None
        return FrozenTeacher(module, self.precision, self.input_map, copies, self.device, backend)
