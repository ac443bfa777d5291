"""Interface of transfer losses: what the student should learn from the teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from lightning_optim.surgery.tap import ModuleCall


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Context of a transfer loss: what it may want to know besides the two calls.

    Args:
        progress: How far through its window distillation is, in ``[0, 1]``.
        batch: The batch that the training step received.
    """

    progress: float
    batch: Any


class Loss(ABC):
    """Transfer loss: compares one call of the student's network with the teacher's answer to the same inputs."""

    @abstractmethod
    def __call__(self, student: ModuleCall, teacher: ModuleCall, context: Context) -> Tensor:
        """Return a scalar, differentiable in the student's output.

        Args:
            student: Inputs and output of the student's network.
            teacher: Inputs and output of the teacher; without gradient.
            context: Where training stands, and the batch.
        """
