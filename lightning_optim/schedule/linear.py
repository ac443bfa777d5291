"""Linear schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Schedule):
    """Linear schedule: from ``start`` to ``end`` in a straight line.

    Args:
        start: Value at progress 0.
        end: Value at progress 1.

    Example:
        >>> Linear(start=0.0, end=0.8)(0.5)
        0.4
    """

    start: float = 0.0
    end: float

    @override
    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress
