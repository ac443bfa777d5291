"""Window of training, and the progress through it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from lightning_optim.checked import checked

_ROUNDING = 1e-9  # the counters are exact, but a fraction is not: 0.3 / 0.1 must be three whole jumps

Unit = Literal["fraction", "epoch", "step"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Clock: how many batches, optimizer steps and epochs of training are done, of how many.

    Args:
        batch: Batches trained on so far.
        step: Optimizer steps taken so far.
        epoch: Epochs done so far. A fraction counts the part of the current one that is done.
        total_batches: Batches of the whole fit; ``inf`` if it has no end, or no known one.
        total_steps: Optimizer steps of the whole fit; ``inf`` as above.
        total_epochs: Epochs of the whole fit; ``inf`` as above.
    """

    batch: int
    step: int
    epoch: float
    total_batches: float
    total_steps: float
    total_epochs: float


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Window of training, given in epochs, in optimizer steps or as fractions of the fit.

    A fraction of the fit is a share of the batches that it trains on. Under manual optimization, where a batch may take
    any number of optimizer steps, a step is a batch.

    Args:
        begin: Where the window opens, at least 0.
        end: Where it closes, after ``begin``; ``None`` is the end of the fit.
        unit: ``"fraction"`` (of the fit, in ``[0, 1]``), ``"epoch"`` or ``"step"``.
        every: Advance in jumps of this size, above 0; ``None`` advances with each step.

    Raises:
        ValueError: If the bounds are out of order or out of range.

    Example:
        >>> clock = Clock(batch=50, step=50, epoch=5.0, total_batches=100, total_steps=100, total_epochs=10)
        >>> Window(begin=0.25, end=0.75).progress(clock)
        0.5
        >>> Window(begin=6, unit="epoch").progress(clock) is None
        True
    """

    begin: float = 0.0
    end: float | None = None
    unit: Unit = "fraction"
    every: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("fraction", "epoch", "step"):
            raise ValueError(f"unit must be 'fraction', 'epoch' or 'step', got {self.unit!r}")
        if not self.begin >= 0.0:
            raise ValueError(f"begin must be at least 0, got {self.begin}")
        if self.end is not None and not self.end > self.begin:
            raise ValueError(f"end must come after begin={self.begin}, got {self.end}")
        if self.every is not None and not self.every > 0.0:
            raise ValueError(f"every must be above 0, got {self.every}")
        last = self.begin if self.end is None else self.end
        if self.unit == "fraction" and last > 1.0:
            raise ValueError(
                f"a window in fractions of the fit lies in [0, 1], got {last}; set unit to 'epoch' or 'step'?"
            )

    def check(self, clock: Clock) -> None:
        """Refuse a window that this fit can never reach.

        Raises:
            ValueError: If the window opens after the fit ends, or needs an end that the fit does not have.
        """
        _, total = self._now_and_total(clock)
        needed = None
        if self.unit == "fraction" and math.isinf(clock.total_batches):
            needed = "in fractions of the fit needs the number of its batches"
        elif self.end is None and math.isinf(total):
            needed = "without an end needs a fit with one"
        if needed is not None:
            raise ValueError(
                f"a window {needed}, but {_why_unknown(clock)}: set max_steps, or max_epochs and data with a length "
                "(a whole limit_train_batches gives them one), or give the window an end in epochs or steps"
            )
        if self.begin >= total:
            raise ValueError(f"the window opens at {self.unit} {self.begin:g}, but the fit ends at {total:g}")

    def progress(self, clock: Clock) -> float | None:
        """Return how far through the window ``clock`` is.

        Returns:
            ``None`` before the window opens, then a value in ``[0, 1]``, and 1 for ever after it closes.
        """
        now, total = self._now_and_total(clock)
        if now < self.begin - _ROUNDING:
            return None
        end = total if self.end is None else self.end
        if now >= end - _ROUNDING:
            return 1.0
        walked = max(now - self.begin, 0.0)
        if self.every is not None:
            walked = math.floor(walked / self.every + _ROUNDING) * self.every
        return min(1.0, walked / (end - self.begin))

    def _now_and_total(self, clock: Clock) -> tuple[float, float]:
        if self.unit == "step":
            return float(clock.step), clock.total_steps
        if self.unit == "epoch":
            return clock.epoch, clock.total_epochs
        return clock.batch / max(clock.total_batches, 1.0), 1.0


def _why_unknown(clock: Clock) -> str:
    if math.isinf(clock.total_batches) and math.isinf(clock.total_epochs):
        return "it has no end that is known at its start"
    return "its training data have no length"
