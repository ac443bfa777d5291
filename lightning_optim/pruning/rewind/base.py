"""Where training goes back to after a pruning step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

Rewound = Literal["weights", "learning_rate"]


class Rewind(ABC):
    """Says what goes back, after each pruning step, to what it was at an earlier optimizer step."""

    @property
    @abstractmethod
    def step(self) -> int:
        """The optimizer step to go back to, at least 0; pruning begins after it."""

    @property
    @abstractmethod
    def goes_back(self) -> frozenset[Rewound]:
        """``"weights"`` (with buffers and moments), ``"learning_rate"`` (with its schedule), or both."""
