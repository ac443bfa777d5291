"""Progress of an architecture search: ask, evaluate, tell, and continue after a stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, final

from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.result import Evaluation, SearchResult, best_of
from lightning_optim.nas.selection import Selection
from lightning_optim.search.strategy.base import SearchState

_REFUSALS_PER_EVALUATION = 100


@final
class SearchProgress:
    """Progress of a search: the strategy's state and the evaluations so far.

    What breaks the bound is refused before it is evaluated, and costs no evaluation.

    Args:
        search: A started strategy.
        selection: The bound and the number of evaluations.

    Example:
        >>> from lightning_optim.search import Decision, RandomSearch, SearchSpace
        >>> space = SearchSpace([Decision(name="width", options=("1", "2", "3"), default=2)])
        >>> search = RandomSearch().start(space, seed=0)
        >>> cost = lambda architecture: architecture["width"] + 1
        >>> SearchProgress(search, Selection(max_cost=2)).run(lambda found: float(cost(found)), cost).pick.cost
        2
    """

    def __init__(self, search: SearchState, selection: Selection) -> None:
        self._search, self._selection = search, selection
        self._evaluations: list[Evaluation] = []
        self._refused, self._cheapest = 0, math.inf

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations so far, in order."""
        return tuple(self._evaluations)

    def run(
        self,
        evaluate: Callable[[Architecture], float],
        measure: Callable[[Architecture], float],
        save: Callable[[SearchProgress], None] = lambda progress: None,
    ) -> SearchResult:
        """Ask, evaluate and tell until the evaluations are spent or the space is exhausted.

        Args:
            evaluate: Returns the score of an architecture.
            measure: Returns its cost.
            save: Called after each evaluation.

        Returns:
            The pick, the Pareto front and all evaluations, those of a loaded state included.

        Raises:
            ValueError: If nothing within the bound was found, or every score is NaN.
        """
        most_refused = _REFUSALS_PER_EVALUATION * self._selection.evaluations
        while len(self._evaluations) < self._selection.evaluations and self._refused < most_refused:
            proposal = self._search.ask()
            if proposal is None:
                break
            architecture = proposal.candidate
            cost = measure(architecture)
            self._cheapest = min(self._cheapest, cost)
            if not self._selection.allows(cost):
                self._search.tell(proposal, None)
                self._refused += 1
                continue
            score = evaluate(architecture)
            self._search.tell(proposal, [self._selection.gain(score)])
            self._evaluations.append(Evaluation(architecture=architecture, score=score, cost=cost))
            save(self)
        self._check_any()
        return best_of(self._evaluations, self._selection)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the search depends on, as plain primitives."""
        return {
            "strategy": self._search.state_dict(),
            "evaluations": list(map(asdict, self._evaluations)),
            "refused": self._refused,
            "cheapest": self._cheapest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a search of the same decisions, strategy, seed and selection.

        Raises:
            ValueError: If it has more evaluations than the selection allows, or decides something else.
        """
        if len(state["evaluations"]) > self._selection.evaluations:
            raise ValueError(
                f"{len(state['evaluations'])} architectures were evaluated already, and selection.evaluations is "
                f"{self._selection.evaluations}: raise it"
            )
        self._search.load_state_dict(state["strategy"])
        self._evaluations = [Evaluation(**entry) for entry in state["evaluations"]]
        self._refused, self._cheapest = int(state["refused"]), state["cheapest"]

    def _check_any(self) -> None:
        if not self._evaluations:
            raise ValueError(
                f"no architecture tried meets max_cost={self._selection.max_cost:g} "
                f"({type(self._selection.cost).__name__}), the cheapest has "
                f"{self._cheapest:g}; raise the bound, or widen the space downwards"
            )
