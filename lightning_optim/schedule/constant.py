"""Constant schedule: the same value throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Schedule):
    """Constant schedule: one value from the window's first step on (one-shot pruning, for a sparsity).

    Args:
        value: The value.

    Example:
        >>> Constant(value=0.5)(0.0)
        0.5
    """

    value: float

    @override
    def __call__(self, progress: float) -> float:
        return self.value
