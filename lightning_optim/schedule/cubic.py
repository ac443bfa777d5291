"""Cubic schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Cubic(Schedule):
    """Cubic schedule: fast at first, then ever slower (Zhu and Gupta, 2017; arXiv:1710.01878, eq. 1).

    The value is ``end + (start - end) * (1 - progress) ** 3``: most weights go while many are still redundant.

    Args:
        start: Value at progress 0.
        end: Value at progress 1.

    Example:
        >>> Cubic(end=0.8)(0.5)
        0.7000000000000001
    """

    start: float = 0.0
    end: float

    @override
    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1.0 - progress) ** 3
