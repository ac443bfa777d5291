"""Interface of a search strategy: it proposes candidates and learns from their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_optim.search.decision import Candidate
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace


class SearchState(ABC):
    """Search under way: ask for a proposal, evaluate it, tell its scores.

    Several may be asked for before the first of them is told.
    """

    @abstractmethod
    def ask(self) -> Proposal | None:
        """Propose a candidate and fidelity that were never proposed before; ``None`` once there are no more."""

    @abstractmethod
    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> None:
        """Learn the scores of a proposal.

        Args:
            proposal: What ``ask`` returned.
            scores: One per objective, higher is better; ``None`` if the candidate is not allowed or has no score.

        Raises:
            ValueError: If the proposal was not asked for, or there are more or fewer scores than objectives.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next proposals depend on, as plain primitives."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a search of the same space, strategy, settings and seed.

        Raises:
            ValueError: If it is of another search, saying in what they differ.
        """


class Strategy(ABC):
    """Search strategy: a setting that starts a search."""

    @abstractmethod
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> SearchState:
        """Start a search; what it proposes is a function of the seed and of what it is told.

        Args:
            space: What there is to decide.
            seed: Seeds every draw.
            num_scores: Objectives, at least 1.
            first: Candidates that it proposes before any other.

        Raises:
            ValueError: If it cannot rank by so many scores.
        """


def check_one_score(setting: Strategy, num_scores: int) -> None:
    """Refuse more than one objective.

    Raises:
        ValueError: Naming strategies that take several.
    """
    if num_scores != 1:
        raise ValueError(
            f"{type(setting).__name__} ranks by one score, got {num_scores} objectives: bound all but one of them, or "
            "take a strategy of several, such as ParetoEvolution"
        )
