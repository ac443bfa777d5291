"""Search a trained supernet for the best architecture that the bound allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from lightning_optim.nas.architecture import Architecture
from lightning_optim.search.pareto import pareto_front
from lightning_optim.search.strategy.base import SearchState

_REFUSALS_PER_EVALUATION = 100


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How architectures are judged, and at what price.

    Args:
        monitor: Key of the score among the metrics that the module logs in validation.
        mode: Whether a ``"max"`` or a ``"min"`` of it is best.
        max_macs: Bound on the multiply-accumulates of one sample; ``None`` allows all.
        evaluations: Architectures to judge, at least 1.
        recalibration_batches: Batches that set the batch-norm statistics of an architecture before it is
            judged; 0 judges it with the supernet's own.

    Raises:
        ValueError: If a value is out of range.
    """

    monitor: str = "val/accuracy"
    mode: Literal["min", "max"] = "max"
    max_macs: float | None = None
    evaluations: int = 64
    recalibration_batches: int = 20

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")
        if self.max_macs is not None and not self.max_macs > 0:
            raise ValueError(f"max_macs must be positive, or None for no bound, got {self.max_macs}")
        if self.evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, got {self.evaluations}")
        if self.recalibration_batches < 0:
            raise ValueError(f"recalibration_batches must be at least 0, got {self.recalibration_batches}")

    def gain(self, score: float) -> float:
        """The score, turned such that higher is better."""
        return score if self.mode == "max" else -score

    def allows(self, macs: float) -> bool:
        """Whether a price is within the bound."""
        return self.max_macs is None or macs <= self.max_macs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """An architecture, its score as monitored, and its MACs for one sample."""

    architecture: Architecture
    score: float
    macs: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search has found.

    Args:
        pick: The best of those judged; of equals, the cheapest.
        pareto: Those that no other beats in both score and MACs, cheapest first.
        judged: All that were judged, in order.
    """

    pick: Evaluation
    pareto: tuple[Evaluation, ...]
    judged: tuple[Evaluation, ...]

    def state_dict(self) -> dict[str, Any]:
        """The findings as plain primitives."""
        return {
            "pick": asdict(self.pick),
            "pareto": list(map(asdict, self.pareto)),
            "judged": list(map(asdict, self.judged)),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SearchResult:
        """The result from ``state_dict``."""
        pareto, judged = (tuple(Evaluation(**entry) for entry in state[key]) for key in ("pareto", "judged"))
        return cls(pick=Evaluation(**state["pick"]), pareto=pareto, judged=judged)


def run_search(
    search: SearchState,
    judge: Callable[[Architecture], float],
    count_macs: Callable[[Architecture], int],
    selection: Selection,
) -> SearchResult:
    """Ask, judge and tell until the evaluations are spent or the space is exhausted.

    What breaks the bound is refused before it is judged, and costs no evaluation.

    Args:
        search: A started strategy.
        judge: Returns the score of an architecture.
        count_macs: Returns its MACs for one sample.
        selection: The bound and the number of evaluations.

    Returns:
        The pick, the Pareto front and everything judged.

    Raises:
        ValueError: If nothing within the bound was found, or no score is a number.

    Example:
        >>> from lightning_optim.search.decision import Decision
        >>> from lightning_optim.search.strategy.random import RandomSearch
        >>> search = RandomSearch().start([Decision(name="width", options=("1", "2", "3"), default=2)], seed=0)
        >>> macs = lambda architecture: architecture["width"] + 1
        >>> run_search(search, lambda found: float(macs(found)), macs, Selection(max_macs=2)).pick.macs
        2
    """
    judged: list[Evaluation] = []
    refusals, cheapest = 0, math.inf
    while len(judged) < selection.evaluations and refusals < _REFUSALS_PER_EVALUATION * selection.evaluations:
        architecture = search.ask()
        if architecture is None:
            break
        macs = count_macs(architecture)
        cheapest = min(cheapest, macs)
        if not selection.allows(macs):
            search.tell(architecture, None)
            refusals += 1
            continue
        score = judge(architecture)
        search.tell(architecture, None if math.isnan(score) else selection.gain(score))
        judged.append(Evaluation(architecture=architecture, score=score, macs=macs))
    return _concluded(judged, selection, cheapest)


def _concluded(judged: Sequence[Evaluation], selection: Selection, cheapest: float) -> SearchResult:
    if not judged:
        raise ValueError(
            f"no architecture tried meets max_macs={selection.max_macs:g}, the cheapest has {cheapest:g}; "
            "raise the bound, or widen the space downwards"
        )
    sound = [entry for entry in judged if not math.isnan(entry.score)]
    if not sound:
        raise ValueError(f"every one of {len(judged)} architectures scored NaN; has the supernet diverged in training?")
    pick = max(sound, key=lambda entry: (selection.gain(entry.score), -entry.macs))
    return SearchResult(pick=pick, pareto=tuple(_pareto(sound, selection)), judged=tuple(judged))


def _pareto(judged: Sequence[Evaluation], selection: Selection) -> list[Evaluation]:
    """The entries that no other beats in both, cheapest first; of equals, the first."""
    points = {(entry.macs, -selection.gain(entry.score)): entry for entry in reversed(judged)}
    costs = list(points)
    return [points[costs[index]] for index in sorted(pareto_front(costs), key=costs.__getitem__)]
