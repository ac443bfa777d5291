"""Selection of an architecture: what is measured, what it may cost, and what the search improves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from lightning_optim.checked import checked
from lightning_optim.cost.base import Cost
from lightning_optim.cost.macs import MACs
from lightning_optim.nas.measure import LoggedMetric, Measure, NetworkCost
from lightning_optim.nas.screening import Screening

SCORE, COST = "score", "cost"


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selection: which score counts, what an architecture may cost, and how many are evaluated.

    Every architecture has a score and a cost. With ``measures`` it has more, and with ``objectives`` the strategy
    improves several of them at once. The pick is the best in the first objective of all within their bounds.

    Args:
        monitor: Key of the score among the metrics that the module logs in validation.
        mode: Whether the highest (``"max"``) or the lowest (``"min"``) score is best.
        cost: What an architecture costs. MACs are those of one sample; any other cost measures the extracted network
            on the CPU, called on the example. It is a dataclass, told from others by its ``repr``.
        max_cost: Bound in the unit of ``cost``; ``None`` allows all.
        measures: What else is measured, by names of your choice: ``LoggedMetric`` and ``NetworkCost``. One with a
            bound is a hard constraint.
        objectives: Names of what the strategy improves: ``"score"``, ``"cost"`` or those of ``measures``. More than one
            need a strategy that ranks by several. The front of the result is theirs; with one objective, the front of
            it and the cost.
        evaluations: Number of architectures to evaluate, at least 1.
        screening: A cheap first filter of what is proposed; ``None`` evaluates all that is within the bounds.
        recalibration_batches: Batches that set the batch-norm statistics of an architecture before its score is
            measured; with 0 it has the statistics of the supernet.

    Raises:
        ValueError: If a value is out of range, or a name is taken, unknown or stands twice.

    Example:
        >>> from lightning_optim.cost import Parameters
        >>> size = NetworkCost(cost=Parameters(), bound=5000)
        >>> small = Selection(measures={"size": size}, objectives=("score", "size"))
        >>> [found.describe() for found in small.all_measures.values()]
        ['val/accuracy', 'MACs', 'Parameters at most 5000']
    """

    monitor: str = "val/accuracy"
    mode: Literal["min", "max"] = "max"
    cost: Cost = field(default_factory=MACs)
    max_cost: float | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    objectives: Sequence[str] = (SCORE,)
    evaluations: int = 64
    screening: Screening | None = None
    recalibration_batches: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "measures", dict(self.measures))
        object.__setattr__(self, "objectives", tuple(self.objectives))
        if self.max_cost is not None and not self.max_cost > 0:
            raise ValueError(f"max_cost must be positive, or None for no bound, got {self.max_cost}")
        if self.evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, got {self.evaluations}")
        if self.recalibration_batches < 0:
            raise ValueError(f"recalibration_batches must be at least 0, got {self.recalibration_batches}")
        taken = sorted({SCORE, COST} & self.measures.keys())
        if taken:
            raise ValueError(f"every architecture has a {taken[0]!r} already: give the entry of measures another name")
        known = list(self.all_measures)
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives must name at least one of {known}, each once, got {list(self.objectives)}")
        unknown = [name for name in self.objectives if name not in known]
        if unknown:
            raise ValueError(f"objective {unknown[0]!r} is not measured: choose from {known}, or add it to measures")

    @property
    def all_measures(self) -> dict[str, Measure]:
        """Everything that is measured, by name: the score, the cost, and ``measures``."""
        score = LoggedMetric(monitor=self.monitor, mode=self.mode)
        return {SCORE: score, COST: NetworkCost(cost=self.cost, bound=self.max_cost), **self.measures}

    @property
    def costs(self) -> dict[str, NetworkCost]:
        """The measures that are known before an architecture is evaluated."""
        return {name: entry for name, entry in self.all_measures.items() if isinstance(entry, NetworkCost)}

    @property
    def metrics(self) -> dict[str, LoggedMetric]:
        """The measures that an evaluation finds."""
        return {name: entry for name, entry in self.all_measures.items() if isinstance(entry, LoggedMetric)}

    @property
    def front_axes(self) -> tuple[str, ...]:
        """Names of what the front is of."""
        several = len(self.objectives) > 1
        return tuple(self.objectives) if several else tuple(dict.fromkeys((*self.objectives, SCORE, COST)))

    def gains(self, values: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
        """The values of these measures, each with the sign that makes higher better."""
        measures = self.all_measures
        return tuple(measures[name].gain(values[name]) for name in names)

    def broken_by(self, values: Mapping[str, float]) -> list[str]:
        """Names of the measures whose bounds these values break."""
        return [name for name, entry in self.all_measures.items() if name in values and not entry.allows(values[name])]
