"""A strategy proposes architectures and learns from their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_optim.search.decision import Architecture, Decision


class SearchState(ABC):
    """A search under way: ask, judge, tell."""

    @abstractmethod
    def ask(self) -> Architecture | None:
        """Propose an architecture that was never proposed before; ``None`` once there are no more."""

    @abstractmethod
    def tell(self, architecture: Architecture, score: float | None) -> None:
        """Take in what a proposal is worth.

        Args:
            architecture: A proposal.
            score: Higher is better; ``None`` if it is not allowed at all.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next proposals depend on, as plain primitives."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""


class Strategy(ABC):
    """A setting that starts a search."""

    @abstractmethod
    def start(self, decisions: Sequence[Decision], seed: int, first: Sequence[Architecture] = ()) -> SearchState:
        """Begin a search; what it proposes is a function of the seed and of what it is told.

        Args:
            decisions: What there is to decide, at least one.
            seed: Seeds every draw.
            first: Architectures to propose before any other.
        """
