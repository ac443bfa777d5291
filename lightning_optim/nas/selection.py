"""Selection of an architecture from a trained supernet: which score counts, and what an architecture may cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

from lightning_optim.checked import checked
from lightning_optim.cost.base import Cost
from lightning_optim.cost.macs import MACs


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selection: which score counts, what an architecture may cost, and how many are evaluated.

    Args:
        monitor: Key of the score among the metrics that the module logs in validation.
        mode: Whether the highest (``"max"``) or the lowest (``"min"``) score is best.
        cost: What an architecture costs. MACs are those of one sample; any other cost measures the extracted network
            on the CPU, called on the example. It is a dataclass, told from others by its ``repr``.
        max_cost: Bound in the unit of ``cost``; ``None`` allows all.
        evaluations: Number of architectures to evaluate, at least 1.
        recalibration_batches: Batches that set the batch-norm statistics of an architecture before its score is
            measured; with 0 it has the statistics of the supernet.

    Raises:
        ValueError: If a value is out of range.
    """

    monitor: str = "val/accuracy"
    mode: Literal["min", "max"] = "max"
    cost: Cost = field(default_factory=MACs)
    max_cost: float | None = None
    evaluations: int = 64
    recalibration_batches: int = 20

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")
        if self.max_cost is not None and not self.max_cost > 0:
            raise ValueError(f"max_cost must be positive, or None for no bound, got {self.max_cost}")
        if self.evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, got {self.evaluations}")
        if self.recalibration_batches < 0:
            raise ValueError(f"recalibration_batches must be at least 0, got {self.recalibration_batches}")

    def gain(self, score: float) -> float:
        """The score with the sign that makes higher better."""
        return score if self.mode == "max" else -score

    def allows(self, cost: float) -> bool:
        """Whether a cost is within the bound."""
        return self.max_cost is None or cost <= self.max_cost
