"""Interface of dropout methods: what is dropped from the output of a module while it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class DropoutMethod(ABC):
    """Dropout method: how the probability of a drop is shared out, and what is done with it."""

    @abstractmethod
    def rates(self, probability: float, own: Sequence[float]) -> list[float]:
        """Return the probability of a drop for each targeted module.

        Args:
            probability: What the schedule says.
            own: Each module's own probability, in the model's order; 0 where nothing is dropped by itself.
        """


class AddedDropout(DropoutMethod):
    """Dropout method that is added to the outputs of modules, which know nothing of it."""

    @abstractmethod
    def __call__(self, output: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        """Return what goes on in place of an output.

        Args:
            output: ``[B, ...]``.
            probability: Of a drop, above 0 and below 1.
            generator: What to draw from, on the output's device.
        """
