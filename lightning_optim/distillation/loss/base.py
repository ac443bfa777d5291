"""Interface of transfer losses: what the student should learn from the teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_optim.distillation.observation import Observation
from lightning_optim.distillation.place import PlacePair, Side


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Context of a transfer loss: what it may want to know besides the two calls.

    Args:
        progress: How far through its window distillation is, in ``[0, 1]``.
        batch: The batch that the training step received.
        learned: What the loss has made in ``make_learned``.
    """

    progress: float
    batch: Any
    learned: nn.Module | None = None


class Loss(ABC):
    """Transfer loss: compares one call of the student's network with the teacher's answer to the same inputs."""

    @property
    def has_schedule(self) -> bool:
        """Whether a setting changes while training goes on."""
        return False

    def pairs(self, student: Side, teacher: Side) -> tuple[PlacePair, ...]:
        """The places that it looks at, of the student and of the teacher; none if outputs are enough.

        Args:
            student: The student.
            teacher: The teacher.

        Raises:
            TargetError: If a place is in neither.
        """
        return ()

    def kept_outputs(self, output: Any) -> tuple[str | int | None, ...] | None:
        """Where in a teacher's output the tensors are that it reads, for a cache to keep; ``None`` if it does not say.

        Beside these it may read the features at ``pairs``.

        Args:
            output: What a teacher returned.
        """
        return None

    def make_learned(self, student: Observation, teacher: Observation) -> nn.Module | None:
        """Make what learns inside the loss, such as a projection, sized by the first call; ``None`` if nothing does.

        It belongs to the callback, never to the student.

        Args:
            student: The student's first call.
            teacher: The teacher's answer.
        """
        return None

    def make_optimizer(self, tensors: list[Tensor]) -> Optimizer:
        """Make the optimizer of what was made: AdamW with a learning rate of 0.001, unless a loss says otherwise.

        Args:
            tensors: The parameters.
        """
        return torch.optim.AdamW(tensors, 1e-3)

    @abstractmethod
    def __call__(self, student: Observation, teacher: Observation, context: Context) -> Tensor:
        """Return a scalar, differentiable in the student's output and features.

        Args:
            student: Inputs, output and features of the student's network.
            teacher: Those of the teacher; without gradient.
            context: Where training stands, the batch, and what is learned.
        """
