"""Lottery tickets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.pruning.rewind.base import Rewind, Rewound


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRewind(Rewind):
    """Put the weights that are left back to what they were at step ``k``: the lottery ticket, trained again.

    ``k = 0`` is the original form (Frankle & Carbin, 2019; arXiv:1803.03635), a small ``k`` the one that holds for
    larger networks (Renda et al., 2020; arXiv:2003.02389). Moments, buffers and the learning-rate schedule go back too.

    Args:
        step: The optimizer step ``k``, at least 0, before pruning begins.

    Raises:
        ValueError: If ``step`` is below 0.

    Example:
        >>> sorted(WeightRewind(step=100).goes_back)
        ['learning_rate', 'weights']
    """

    step: int = 0

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step must be at least 0, got {self.step}")

    @property
    @override
    def goes_back(self) -> frozenset[Rewound]:
        return frozenset({"weights", "learning_rate"})
