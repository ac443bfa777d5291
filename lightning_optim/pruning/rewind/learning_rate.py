"""Retrain what is left as it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.pruning.rewind.base import Rewind, Rewound


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateRewind(Rewind):
    """Keep the weights, and start the learning-rate schedule again from step ``k`` after each pruning step.

    Renda et al., 2020; arXiv:2003.02389: as good as rewinding weights, and simpler.

    Args:
        step: The optimizer step ``k``, at least 0, before pruning begins.

    Raises:
        ValueError: If ``step`` is below 0.

    Example:
        >>> LearningRateRewind(step=100).goes_back
        frozenset({'learning_rate'})
    """

    step: int = 0

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step must be at least 0, got {self.step}")

    @property
    @override
    def goes_back(self) -> frozenset[Rewound]:
        return frozenset({"learning_rate"})
