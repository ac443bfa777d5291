"""A list of values, each held for the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.schedule.base import Schedule


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Steps(Schedule):
    """Hold each of ``values`` for an equal share of the window.

    Args:
        values: One or more values, in order.

    Raises:
        ValueError: If there is no value.

    Example:
        >>> [Steps(values=(0.2, 0.5, 0.8))(progress) for progress in (0.0, 0.4, 1.0)]
        [0.2, 0.5, 0.8]
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a step schedule needs at least one value, got none")
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))

    @override
    def __call__(self, progress: float) -> float:
        return self.values[min(int(progress * len(self.values)), len(self.values) - 1)]
