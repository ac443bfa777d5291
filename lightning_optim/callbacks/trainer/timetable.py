"""Timetable of a fit: after which of its batches an optimizer step is taken and an epoch ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Timetable of a fit, from where it stands.

    An optimizer step is taken after so many batches of an epoch as the accumulation says, and after its last one.

    Args:
        batch: Batches done so far.
        step: Optimizer steps taken so far.
        epoch: Whole epochs done so far.
        done: Batches done of the epoch that runs.
        length: Batches of an epoch; ``inf`` if that is not known.
        accumulation: How many batches make a step, by the first epoch from which that holds; 0 is among them.

    Example:
        >>> start = Timetable(batch=0, step=0, epoch=0, done=0, length=5, accumulation={0: 2, 1: 1})
        >>> start.after_epochs(2).step  # after batches 2, 4 and 5 of the first epoch, and each of the second
        8
        >>> start.after_steps(4).batch
        6
    """

    batch: int
    step: int
    epoch: int
    done: int
    length: float
    accumulation: Mapping[int, int]

    @property
    def epochs(self) -> float:
        """Epochs done, with the part of the one that runs; whole ones alone where the length is not known."""
        return self.epoch + self.done / self.length

    def after_steps(self, count: int) -> Timetable:
        """Return where the fit stands when it has taken so many optimizer steps more."""
        goal, at = self.step + count, self
        while at.step < goal:
            size, left = at._size, at._steps_left
            if goal - at.step < left:
                done = (at.done // size + goal - at.step) * size
                return replace(at, batch=at.batch + done - at.done, step=goal, done=done)
            # This epoch ends, and so do as many whole ones after it as there are steps for.
            number = 1 + (goal - at.step - int(left)) // math.ceil(at.length / size)
            at = at._after_equal_epochs(min(number, at._num_equal_epochs))
        return at

    def after_epochs(self, count: int) -> Timetable:
        """Return where the fit stands at the end of so many epochs, the running one included; they need a length."""
        goal, at = self.epoch + count, self
        while at.epoch < goal:
            at = at._after_equal_epochs(min(goal - at.epoch, at._num_equal_epochs))
        return at

    @property
    def _size(self) -> int:
        """Batches of an optimizer step in the epoch that runs."""
        return self.accumulation[max(first for first in self.accumulation if first <= self.epoch)]

    @property
    def _num_equal_epochs(self) -> float:
        """Epochs from the running one on, included, before the accumulation changes."""
        return min((first for first in self.accumulation if first > self.epoch), default=math.inf) - self.epoch

    @property
    def _steps_left(self) -> float:
        """Optimizer steps to come in the epoch that runs."""
        if math.isinf(self.length):
            return math.inf
        return math.ceil(self.length / self._size) - self.done // self._size if self.done < self.length else 0

    def _after_equal_epochs(self, count: float) -> Timetable:
        others = int(count) - 1
        return replace(
            self,
            batch=self.batch + int(self.length) * (others + 1) - self.done,
            step=self.step + int(self._steps_left) + math.ceil(self.length / self._size) * others,
            epoch=self.epoch + others + 1,
            done=0,
        )
