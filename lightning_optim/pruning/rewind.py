"""Rewinding: where training goes back to after a pruning step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from lightning_optim.checked import checked


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """Weight rewinding (lottery ticket) or learning-rate rewinding, after each pruning step.

    ``"weights"`` puts the weights that are left back to what they were at step ``k``, with buffers, moments and the
    learning-rate schedule. ``k = 0`` is the original lottery ticket (Frankle and Carbin, 2019; arXiv:1803.03635); a
    small ``k`` works for larger networks too (Renda et al., 2020; arXiv:2003.02389). ``"learning_rate"`` keeps the
    weights and starts the learning-rate schedule again from step ``k``, which is as good, and simpler (Renda et al.).

    Args:
        step: The optimizer step ``k`` to go back to, at least 0; pruning begins after it.
        restores: What goes back: ``"weights"`` (all of the training state) or ``"learning_rate"``.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> Rewind(step=100)
        Rewind(step=100, restores='weights')
    """

    step: int = 0
    restores: Literal["weights", "learning_rate"] = "weights"

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step must be at least 0, got {self.step}")
        if self.restores not in ("weights", "learning_rate"):
            raise ValueError(f"restores must be 'weights' or 'learning_rate', got {self.restores!r}")
