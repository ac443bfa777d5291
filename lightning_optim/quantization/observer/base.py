"""What every observer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class ObserverState(ABC):
    """Ranges of many tensors, kept as two flat vectors so that ranks merge them in one message."""

    __slots__ = ()

    @property
    @abstractmethod
    def low(self) -> Tensor:
        """Smallest value of every tensor, ``[N]``; ``inf`` where none was seen."""

    @property
    @abstractmethod
    def high(self) -> Tensor:
        """Largest value of every tensor, ``[N]``; ``-inf`` where none was seen."""

    @abstractmethod
    def grow(self, count: int) -> None:
        """Make room for ``count`` tensors in all."""

    @abstractmethod
    def update(self, low: Tensor, high: Tensor) -> None:
        """Take in the ranges of one batch, ``[N]`` each; ``inf`` and ``-inf`` mark what the batch did not show."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive a checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned."""


class Observer(ABC):
    """A rule that turns the ranges of many batches into one range."""

    __slots__ = ()

    @abstractmethod
    def start(self) -> ObserverState:
        """Return an empty state."""
