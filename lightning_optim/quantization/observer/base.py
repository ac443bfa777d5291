"""Interface of observers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import ClassVar

from torch import Tensor

from lightning_optim.quantization.quantizer.base import Quantizer


class ObserverInput(Enum):
    """Input of an observer: what it wants to know of a tensor."""

    RANGE = "range"
    HISTOGRAM = "histogram"


class ObserverState(ABC):
    """State of observers: what was seen of many tensors, in flat tensors, which ranks merge in one message."""

    __slots__ = ()

    @property
    @abstractmethod
    def low(self) -> Tensor:
        """Smallest value of every tensor, ``[N]``; ``inf`` where none was seen."""

    @property
    @abstractmethod
    def high(self) -> Tensor:
        """Largest value of every tensor, ``[N]``; ``-inf`` where none was seen."""

    def clipped(self, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return the ranges that a quantizer is to cover, ``[N]`` each; what lies outside is clipped."""
        return self.low, self.high

    @abstractmethod
    def grow(self, count: int) -> None:
        """Make room for ``count`` tensors in all."""

    def unite(self, places: Sequence[int]) -> None:  # noqa: B027  # most states count all batches alike
        """Cover all that is seen of some tensors from now on: they come about in several ways, and none is typical."""

    @abstractmethod
    def reset(self, places: Sequence[int]) -> None:
        """Forget what was seen of some tensors."""

    @abstractmethod
    def update(self, low: Tensor, high: Tensor, counts: Tensor | None = None) -> None:
        """Take in one batch.

        Args:
            low: Smallest values, ``[N]``; ``inf`` marks what the batch did not show.
            high: Largest values, ``[N]``; ``-inf`` marks the same.
            counts: Histograms, ``[N, B]``, over the spans that ``observer.functional.exponent_of`` gives for these
                ranges; ``None`` unless the observer needs them.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive a checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned."""


class Observer(ABC):
    """Observer: turns what many batches show into one range.

    Attributes:
        needs: What it is to be told of a batch.
    """

    __slots__ = ()

    needs: ClassVar[ObserverInput] = ObserverInput.RANGE

    @abstractmethod
    def start(self) -> ObserverState:
        """Return an empty state."""
