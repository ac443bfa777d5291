"""Cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine(Schedule):
    """Cosine schedule: from ``start`` to ``end`` along half a cosine wave, which is slow, fast, slow.

    Args:
        start: Value at progress 0.
        end: Value at progress 1.

    Example:
        >>> round(Cosine(start=1.0, end=0.0)(0.5), 6)
        0.5
    """

    start: float = 0.0
    end: float

    @override
    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
