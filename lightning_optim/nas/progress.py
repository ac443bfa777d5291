"""Progress of an architecture search: ask, evaluate, tell, and continue after a stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, final

from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.measure import NetworkCost, say_number
from lightning_optim.nas.result import Evaluation, SearchResult, best_of
from lightning_optim.nas.selection import Selection
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.strategy.base import SearchState

_REFUSALS_PER_EVALUATION = 100

Values = Mapping[str, float]
Evaluate = Callable[[Sequence[Proposal]], Sequence[Values]]
MeasureCost = Callable[[Architecture, NetworkCost], float]
Screen = Callable[[Architecture], float]


@final
class SearchProgress:
    """Progress of a search: the strategy's state and the evaluations so far.

    What breaks a bound on a cost is refused before it is evaluated, and costs no evaluation.

    Args:
        search: A started strategy.
        selection: The bounds and the number of evaluations.
        at_once: How many proposals are evaluated side by side, at least 1.
        screen: Zero-cost score of an architecture, where the selection has a screening.
        unscreened: Architectures that are evaluated whatever their zero-cost score.

    Example:
        >>> from lightning_optim.search import Decision, RandomSearch, SearchSpace
        >>> space = SearchSpace([Decision(name="width", options=("1", "2", "3"), default=2)])
        >>> progress = SearchProgress(RandomSearch().start(space, seed=0), Selection(max_cost=2))
        >>> def evaluate(proposals):
        ...     return [{"score": float(proposal.candidate["width"])} for proposal in proposals]
        >>> progress.run(evaluate, lambda architecture, cost: architecture["width"] + 1).pick.cost
        2
    """

    def __init__(
        self,
        search: SearchState,
        selection: Selection,
        at_once: int = 1,
        *,
        screen: Screen | None = None,
        unscreened: Sequence[Architecture] = (),
    ) -> None:
        self._search, self._selection, self._at_once = search, selection, at_once
        self._screen, self._unscreened = screen, unscreened
        self._evaluations: list[Evaluation] = []
        self._refused, self._cheapest = 0, dict.fromkeys(selection.costs, math.inf)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations so far, in order."""
        return tuple(self._evaluations)

    def run(
        self,
        evaluate: Evaluate,
        measure: MeasureCost,
        save: Callable[[SearchProgress], None] = lambda progress: None,
    ) -> SearchResult:
        """Ask, evaluate and tell until the evaluations are spent or the space is used up.

        Args:
            evaluate: Returns the logged metrics of each proposal, by the names of the selection.
            measure: Returns one cost of an architecture.
            save: Called each time that evaluations have been told.

        Returns:
            The pick, the Pareto front and all evaluations, those of a loaded state included.

        Raises:
            ValueError: If nothing within the bounds was found, or every score is NaN.
        """
        while True:
            batch = self._next_batch(measure)
            if not batch:
                break
            metrics = evaluate([proposal for proposal, _ in batch])
            for (proposal, costs), found in zip(batch, metrics, strict=True):
                self._tell(proposal, {**found, **costs})
            save(self)
        self._check_any()
        return best_of(self._evaluations, self._selection)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the search depends on, as plain primitives."""
        return {
            "strategy": self._search.state_dict(),
            "evaluations": list(map(asdict, self._evaluations)),
            "refused": self._refused,
            "cheapest": dict(self._cheapest),
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
        self._refused, self._cheapest = int(state["refused"]), dict(state["cheapest"])

    def _next_batch(self, measure: MeasureCost) -> list[tuple[Proposal, Values]]:
        left = self._selection.evaluations - len(self._evaluations)
        batch: list[tuple[Proposal, Values]] = []
        while len(batch) < min(left, self._at_once):
            found = self._next_screened(measure)
            if found is None:
                break
            batch.append(found)
        return batch

    def _next_screened(self, measure: MeasureCost) -> tuple[Proposal, Values] | None:
        found = self._next_allowed(measure)
        screening = self._selection.screening
        if found is None or screening is None or self._screen is None or found[0].candidate in self._unscreened:
            return found
        rivals = [found]
        while len(rivals) < screening.candidates and (other := self._next_allowed(measure)) is not None:
            rivals.append(other)
        scores = [self._screen(proposal.candidate) for proposal, _ in rivals]
        best = scores.index(max(scores))
        for place, (proposal, _) in enumerate(rivals):
            if place != best:
                self._search.tell(proposal, None)
        return rivals[best]

    def _next_allowed(self, measure: MeasureCost) -> tuple[Proposal, Values] | None:
        while self._refused < _REFUSALS_PER_EVALUATION * self._selection.evaluations:
            proposal = self._search.ask()
            if proposal is None:
                return None
            costs = self._costs_within(proposal.candidate, measure)
            if costs is not None:
                return proposal, costs
            self._search.tell(proposal, None)
            self._refused += 1
        return None

    def _costs_within(self, architecture: Architecture, measure: MeasureCost) -> Values | None:
        # One after the other: a latency is not measured where the MACs are too many already.
        costs: dict[str, float] = {}
        for name, entry in self._selection.costs.items():
            costs[name] = measure(architecture, entry)
            self._cheapest[name] = min(self._cheapest[name], costs[name])
            if not entry.allows(costs[name]):
                return None
        return costs

    def _tell(self, proposal: Proposal, values: Values) -> None:
        selection = self._selection
        ordered = {name: values[name] for name in selection.all_measures}
        is_allowed = not selection.broken_by(ordered)
        self._search.tell(proposal, selection.gains(ordered, selection.objectives) if is_allowed else None)
        self._evaluations.append(Evaluation.of(proposal, ordered))

    def _check_any(self) -> None:
        if self._evaluations:
            return
        bounded = {name: entry for name, entry in self._selection.costs.items() if entry.bound is not None}
        broken = [name for name, entry in bounded.items() if not entry.allows(self._cheapest[name])]
        texts = [f"{entry.describe()}, the cheapest has {say_number(self._cheapest[name])}"
                 for name, entry in bounded.items() if name in (broken or bounded)]  # fmt: skip
        raise ValueError(
            f"no architecture tried is within the bounds: {'; '.join(texts)}; raise the bound, or widen the space "
            "downwards"
        )
