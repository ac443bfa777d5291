"""Result of an architecture search: evaluations, the pick and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.selection import Selection
from lightning_optim.search.pareto import pareto_front


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Evaluation of an architecture: its score as monitored, and its cost."""

    architecture: Architecture
    score: float
    cost: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Result of a search.

    Args:
        pick: The best evaluation; of equals, the cheapest.
        pareto: The evaluations that no other beats in both score and cost, cheapest first.
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
    """Return the pick and the Pareto front; evaluations whose score is NaN are neither.

    Raises:
        ValueError: If every score is NaN.

    Example:
        >>> found = [Evaluation(architecture={"width": w}, score=0.1 * w, cost=w) for w in (1, 3, 2)]
        >>> [entry.cost for entry in best_of(found, Selection()).pareto]
        [1, 2, 3]
    """
    ranked = [entry for entry in evaluations if not math.isnan(entry.score)]
    if not ranked:
        raise ValueError(
            f"every one of {len(evaluations)} architectures scored NaN; has the supernet diverged in training?"
        )
    pick = max(ranked, key=lambda entry: (selection.gain(entry.score), -entry.cost))
    return SearchResult(pick=pick, pareto=tuple(_front(ranked, selection)), evaluations=tuple(evaluations))


def _front(evaluations: Sequence[Evaluation], selection: Selection) -> list[Evaluation]:
    # Reversed, so that of equals the first stands.
    points = {(entry.cost, -selection.gain(entry.score)): entry for entry in reversed(evaluations)}
    costs = list(points)
    return [points[costs[index]] for index in sorted(pareto_front(costs), key=costs.__getitem__)]
