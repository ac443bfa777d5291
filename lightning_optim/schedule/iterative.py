"""Iterative pruning schedule: prune, fine-tune, prune again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.schedule.base import Schedule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Iterative(Schedule):
    """Iterative pruning schedule: rounds that each remove the same share of what is left, with a rest after each.

    Round ``k`` of ``n`` holds ``1 - (1 - end) ** (k / n)`` (the iterative pruning of Han et al., 2015;
    arXiv:1506.02626): training between two rounds is the fine-tuning.

    Args:
        end: Sparsity of the last round, in ``[0, 1)``.
        rounds: Number of rounds, at least 1.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> [Iterative(end=0.75, rounds=2)(progress) for progress in (0.0, 0.49, 0.5, 1.0)]
        [0.5, 0.5, 0.75, 0.75]
    """

    end: float
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.end < 1.0:
            raise ValueError(f"end must be a sparsity in [0, 1), got {self.end}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")

    @override
    def __call__(self, progress: float) -> float:
        finished = min(int(progress * self.rounds) + 1, self.rounds)
        if finished == self.rounds:
            return self.end
        return float(1.0 - (1.0 - self.end) ** (finished / self.rounds))
