"""Window of training, and the progress through it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

Unit = Literal["fraction", "epoch", "step"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Clock: how many steps and epochs of training are done, of how many.

    Args:
        step: Optimizer steps taken so far.
        epoch: Index of the current epoch, from 0. A fraction counts the part of it that is done.
        total_steps: Optimizer steps of the whole fit; ``inf`` if it has no end.
        total_epochs: Epochs of the whole fit; ``inf`` if it has no end.
    """

    step: int
    epoch: float
    total_steps: float
    total_epochs: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Window of training, given in epochs, in optimizer steps or as fractions of the fit.

    Args:
        begin: Where the window opens, at least 0.
        end: Where it closes, after ``begin``; ``None`` is the end of the fit.
        unit: ``"fraction"`` (of the fit, in ``[0, 1]``), ``"epoch"`` or ``"step"``.
        every: Advance in jumps of this size, above 0; ``None`` advances with each step.

    Raises:
        ValueError: If the bounds are out of order or out of range.

    Example:
        >>> clock = Clock(step=50, epoch=5.0, total_steps=100, total_epochs=10)
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
        if self.end is None and math.isinf(total):
            raise ValueError(
                "a window without an end needs a fit with one: set max_epochs, max_steps or the window's end"
            )
        if self.begin >= total:
            raise ValueError(f"the window opens at {self.unit} {self.begin:g}, but the fit ends at {total:g}")

    def progress(self, clock: Clock) -> float | None:
        """Return how far through the window ``clock`` is.

        Returns:
            ``None`` before the window opens, then a value in ``[0, 1]``, and 1 for ever after it closes.
        """
        now, total = self._now_and_total(clock)
        if now < self.begin:
            return None
        end = total if self.end is None else self.end
        if now >= end:
            return 1.0
        walked = now - self.begin
        if self.every is not None:
            # The counters are exact, but a fraction is not: 0.3 / 0.1 must be three whole jumps.
            walked = math.floor(walked / self.every + 1e-9) * self.every
        return min(1.0, walked / (end - self.begin))

    def _now_and_total(self, clock: Clock) -> tuple[float, float]:
        if self.unit == "step":
            return float(clock.step), clock.total_steps
        if self.unit == "epoch":
            return clock.epoch, clock.total_epochs
        if math.isinf(clock.total_steps):
            raise ValueError(
                "a window in fractions needs a fit with an end: set max_epochs or max_steps, or count in epochs"
            )
        return clock.step / max(clock.total_steps, 1.0), 1.0
