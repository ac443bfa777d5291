"""Interface of loaded teachers: networks that answer the student's calls and never learn from a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal, final

import torch
from torch import nn

from lightning_optim.distillation.observation import Recording
from lightning_optim.distillation.place import Place
from lightning_optim.distillation.teacher.student_copy import StudentCopy
from lightning_optim.surgery.shard import whole_sum
from lightning_optim.surgery.tap import ModuleCall

Precision = Literal["float32", "bfloat16", "float16"]


class LoadedTeacher(ABC):
    """Loaded teacher: in evaluation mode and without gradients."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The network; places of losses are named from here."""

    @property
    @abstractmethod
    def copies(self) -> Sequence[StudentCopy]:
        """The copies of the student that it is made of; none, if it was trained elsewhere."""

    @abstractmethod
    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        """Move the weights, and bring them into the teacher's own number format or the student's.

        Args:
            device: Where the student is trained.
            student_dtype: Number format of the student's weights.
        """

    @abstractmethod
    def look_at(self, places: Iterable[Place]) -> None:
        """Record these places in each answer from now on.

        Raises:
            TargetError: If there is none of that name.
        """

    @abstractmethod
    def release(self) -> None:
        """Record nothing any more."""

    @abstractmethod
    def __call__(self, call: ModuleCall, batch: Any = None) -> Recording:
        """Answer the inputs of ``call``, without gradient.

        Args:
            call: A call of the student's network.
            batch: What the training step received.

        Raises:
            TeacherError: If the teacher does not take these inputs.
        """

    @abstractmethod
    def inputs_for(self, call: ModuleCall, batch: Any) -> Any:
        """What the network is given to answer a call, in tensors and their containers.

        Args:
            call: A call of the student's network.
            batch: What the training step received.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that answers depend on beside those inputs: the same on whatever device."""

    @abstractmethod
    def advice(self, call: ModuleCall, batch: Any) -> list[str]:
        """What to say of how it is run, found by running it; nothing if there is nothing better.

        Args:
            call: A call of the student's network.
            batch: What the training step received.
        """

    @final
    def digest(self) -> tuple[float, ...]:
        """A few numbers that differ if the weights do; each rank that holds a part of them must ask."""
        tensors = [tensor.double() for tensor in self.module.state_dict().values() if tensor.numel()]
        return sum(whole_sum(tensor) for tensor in tensors), sum(whole_sum(tensor.abs()) for tensor in tensors)
