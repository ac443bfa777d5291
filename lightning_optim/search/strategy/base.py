"""Interface of a search strategy: it proposes candidates and learns from their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_optim.search.decision import Candidate, Decision


class SearchState(ABC):
    """Search under way: ask for a candidate, evaluate it, tell its score."""

    @abstractmethod
    def ask(self) -> Candidate | None:
        """Propose a candidate that was never proposed before; ``None`` once there are no more."""

    @abstractmethod
    def tell(self, candidate: Candidate, score: float | None) -> None:
        """Learn the score of a candidate.

        Args:
            candidate: What ``ask`` returned.
            score: Higher is better; ``None`` if the candidate is not allowed or has no score.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next proposals depend on, as plain primitives."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a search of the same decisions, seed and settings.

        Raises:
            ValueError: If the decisions differ.
        """


class Strategy(ABC):
    """Search strategy: a setting that starts a search."""

    @abstractmethod
    def start(self, decisions: Sequence[Decision], seed: int, first: Sequence[Candidate] = ()) -> SearchState:
        """Start a search; what it proposes is a function of the seed and of what it is told.

        Args:
            decisions: What there is to decide, at least one.
            seed: Seeds every draw.
            first: Candidates that it proposes before any other.
        """
