"""Step schedule."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Steps(Schedule):
    """Step schedule: each of ``values`` holds for an equal share of the window, or from a given progress on.

    Args:
        values: One or more values, in order.
        at: Progress at which each value begins: as many, rising from 0 to at most 1; ``None`` gives equal shares.

    Raises:
        ValueError: If there is no value, or ``at`` is not such a list.

    Example:
        >>> [Steps(values=(0.2, 0.5, 0.8))(progress) for progress in (0.0, 0.4, 1.0)]
        [0.2, 0.5, 0.8]
        >>> [Steps(values=(0.2, 0.5, 0.8), at=(0.0, 0.1, 1.0))(progress) for progress in (0.0, 0.4, 1.0)]
        [0.2, 0.5, 0.8]
    """

    values: Sequence[float]
    at: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a step schedule needs at least one value, got none")
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        if self.at is not None:
            object.__setattr__(self, "at", tuple(float(progress) for progress in self.at))
            self._check_at(self.at)

    def _check_at(self, at: Sequence[float]) -> None:
        if len(at) != len(self.values):
            raise ValueError(f"at must say where each of the {len(self.values)} values begins, got {len(at)} places")
        if at[0] != 0.0 or not at[-1] <= 1.0 or not all(one < other for one, other in itertools.pairwise(at)):
            raise ValueError(f"at must rise from 0 to at most 1, got {list(at)}")

    @override
    def __call__(self, progress: float) -> float:
        if self.at is not None:
            return self.values[bisect_right(self.at, progress) - 1]
        return self.values[min(int(progress * len(self.values)), len(self.values) - 1)]
