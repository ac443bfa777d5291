"""Result of an architecture search: evaluations, the pick and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.measure import say_number
from lightning_optim.nas.selection import COST, SCORE, Selection
from lightning_optim.search.pareto import pareto_front
from lightning_optim.search.proposal import Proposal


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Evaluation of an architecture.

    Args:
        architecture: What was evaluated.
        score: As monitored.
        cost: In the unit of the selection's cost.
        measures: What else was measured, by name.
        fidelity: How much was spent on it, where the strategy says so.
    """

    architecture: Architecture
    score: float
    cost: float
    measures: Mapping[str, float] = field(default_factory=dict)
    fidelity: int | None = None

    @property
    def values(self) -> dict[str, float]:
        """Everything that was measured, by name."""
        return {SCORE: self.score, COST: self.cost, **self.measures}

    @classmethod
    def of(cls, proposal: Proposal, values: Mapping[str, float]) -> Evaluation:
        """The evaluation of a proposal, with everything that was measured."""
        others = {name: value for name, value in values.items() if name not in (SCORE, COST)}
        return cls(
            architecture=proposal.candidate,
            score=values[SCORE],
            cost=values[COST],
            measures=others,
            fidelity=proposal.fidelity,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Result of a search.

    Args:
        pick: The best evaluation in the first objective within all bounds; of equals, the better one in what else the
            front is of. Where architectures were evaluated with more or less effort, those of the highest fidelity
            alone can be picked.
        pareto: The evaluations within all bounds that no other beats in everything the front is of: the
            objectives, or the only objective and the cost. The cheapest comes first.
        evaluations: All evaluations, in order.
    """

    pick: Evaluation
    pareto: tuple[Evaluation, ...]
    evaluations: tuple[Evaluation, ...]

    def state_dict(self) -> dict[str, Any]:
        """The result as plain primitives."""
        return {
            "pick": asdict(self.pick),
            "pareto": list(map(asdict, self.pareto)),
            "evaluations": list(map(asdict, self.evaluations)),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SearchResult:
        """The result from ``state_dict``."""
        pareto, evaluations = (tuple(Evaluation(**entry) for entry in state[key]) for key in ("pareto", "evaluations"))
        return cls(pick=Evaluation(**state["pick"]), pareto=pareto, evaluations=evaluations)


def best_of(evaluations: Sequence[Evaluation], selection: Selection) -> SearchResult:
    """Return the pick and the Pareto front.

    Evaluations with a NaN, beyond a bound, or of less than the highest fidelity are neither.

    Raises:
        ValueError: If every evaluation has a NaN, or all others break a bound.

    Example:
        >>> found = [Evaluation(architecture={"width": w}, score=0.1 * w, cost=w) for w in (1, 3, 2)]
        >>> [entry.cost for entry in best_of(found, Selection()).pareto]
        [1, 2, 3]
    """
    numbers = [entry for entry in evaluations if not has_nan(entry)]
    if not numbers:
        raise ValueError(
            f"every one of {len(evaluations)} architectures scored NaN; has the supernet diverged in training?"
        )
    ranked = of_highest_fidelity(numbers)
    allowed = [entry for entry in ranked if not selection.broken_by(entry.values)]
    if not allowed:
        raise ValueError(_nothing_allowed(ranked, selection))
    pick = max(allowed, key=lambda entry: selection.gains(entry.values, selection.front_axes))
    return SearchResult(pick=pick, pareto=tuple(_front(allowed, selection)), evaluations=tuple(evaluations))


def has_nan(evaluation: Evaluation) -> bool:
    """Whether anything that was measured is no number."""
    return any(map(math.isnan, evaluation.values.values()))


def of_highest_fidelity(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations on which as much was spent as on any; without a fidelity, everything was."""
    highest = max(map(_effort, evaluations), default=math.inf)
    return [entry for entry in evaluations if _effort(entry) == highest]


def _effort(evaluation: Evaluation) -> float:
    return math.inf if evaluation.fidelity is None else evaluation.fidelity


def _front(evaluations: Sequence[Evaluation], selection: Selection) -> list[Evaluation]:
    # Reversed, so that of equals the first stands.
    points = {selection.gains(entry.values, selection.front_axes): entry for entry in reversed(evaluations)}
    gains = list(points)
    front = pareto_front([[-gain for gain in row] for row in gains])
    return sorted((points[gains[index]] for index in front), key=lambda entry: (entry.cost, entry.score))


def _nothing_allowed(evaluations: Sequence[Evaluation], selection: Selection) -> str:
    broken = [selection.broken_by(entry.values) for entry in evaluations]
    fewest = min(range(len(evaluations)), key=lambda index: len(broken[index]))
    found, measures = evaluations[fewest].values, selection.all_measures
    texts = [f"{measures[name].describe()}, got {say_number(found[name])}" for name in broken[fewest]]
    return (
        f"none of {len(evaluations)} architectures evaluated is within all bounds; the nearest breaks: "
        f"{'; '.join(texts)}. Loosen the bound, or widen the space"
    )
