"""Exponential schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential(Schedule):
    """Exponential schedule: from ``start`` to ``end`` by equal factors in equal times.

    Args:
        start: Value at progress 0, above 0.
        end: Value at progress 1, above 0.

    Raises:
        ValueError: If either value is not above 0.

    Example:
        >>> Exponential(start=1.0, end=0.01)(0.5)
        0.1
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (self.start > 0.0 and self.end > 0.0):
            raise ValueError(f"an exponential schedule needs values above 0, got start={self.start} and end={self.end}")

    @override
    def __call__(self, progress: float) -> float:
        return float(self.start * (self.end / self.start) ** progress)
