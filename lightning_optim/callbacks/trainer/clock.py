"""Clock of a Trainer: how far its fit is, as every callback measures it."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import Callback, Trainer

from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.timetable import Timetable
from lightning_optim.window import Clock, Window


@final
class FitProgress:
    """Progress of a fit through a window: it never goes back, and is 1 where the fit ends if the window does.

    What is left of the fit is found anew at each reading: it may be resumed with more epochs, accumulate other numbers
    of batches or load other data. Where it becomes longer, progress waits until it has caught up; where it becomes
    shorter, progress jumps ahead.

    Args:
        window: The window.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._reached: float | None = None
        self._batch = 0
        self._step: int | None = None

    def check(self, trainer: Trainer) -> None:
        """Refuse a window that this fit can never reach, in ``on_train_start``: before that the data are not known.

        Raises:
            ValueError: If the window opens after the fit ends, or needs an end that the fit does not have.
        """
        clock = clock_of(trainer)
        if clock.batch <= self._batch:
            self._step = None  # another fit, or a batch that is repeated
        if not trainer.lightning_module.automatic_optimization and trainer.max_steps >= 0 and not trainer.global_step:
            clock = _with_far_end(clock, trainer)
        self._window.check(clock)

    def read(self, trainer: Trainer) -> float | None:
        """Return the progress, in the hooks of a fit from ``on_train_start`` on.

        Returns:
            ``None`` before the window opens, then a value in ``[0, 1]``.
        """
        clock = clock_of(trainer)
        if clock.batch < self._batch:
            self._reached = None  # another fit
        self._batch = clock.batch
        progress = self._window.progress(clock)
        if progress is not None:
            self._reached = max(progress, self._reached or 0.0)
        return self._reached

    def enters_step(self, trainer: Trainer) -> bool:
        """Whether another step is under way than at the last call: not while gradients are being accumulated."""
        before, self._step = self._step, clock_of(trainer).step
        return self._step != before

    def state_dict(self) -> dict[str, Any]:
        """What was reached, at which batch, and the step that was entered last."""
        return {"reached": self._reached, "batch": self._batch, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._reached, self._batch, self._step = state["reached"], state["batch"], state["step"]


def clock_of(trainer: Trainer) -> Clock:
    """Read the trainer's own counters; valid in the hooks of a fit from ``on_train_start`` on.

    A step is an optimizer step. Under manual optimization, where a batch may take any number of them, it is a batch.
    The totals are those of whichever of ``max_epochs`` and ``max_steps`` comes first: what is done, and what is left
    if nothing changes.
    """
    now = timetable_of(trainer)
    ends = [_end_by_epochs(trainer, now), _end_by_steps(trainer, now)]
    batches, steps, epochs = (min(each) for each in zip(*ends, strict=True))
    return Clock(
        batch=now.batch,
        step=now.step,
        epoch=now.epochs,
        total_batches=batches,
        total_steps=steps,
        total_epochs=epochs,
    )


def is_cut_short(trainer: Trainer) -> bool:
    """Whether a fit ends before ``max_epochs`` and ``max_steps``, in ``on_train_end``: by ``max_time``, or stopped."""
    clock = clock_of(trainer)
    return clock.batch < clock.total_batches


def _with_far_end(clock: Clock, trainer: Trainer) -> Clock:
    """Give a fit an end of which it is not known how far it is: how many batches its steps take shows in training."""
    has_length = math.isfinite(trainer.num_training_batches)
    return dataclasses.replace(
        clock,
        total_batches=min(clock.total_batches, sys.maxsize),
        total_steps=min(clock.total_steps, sys.maxsize),
        total_epochs=min(clock.total_epochs, sys.maxsize) if has_length else clock.total_epochs,
    )


def clock_after(trainer: Trainer, step: int) -> Clock:
    """Return what ``clock_of`` will read when so many steps are done, at least those that are done already."""
    now, clock = timetable_of(trainer), clock_of(trainer)
    at = now.after_steps(step - now.step)
    return dataclasses.replace(clock, batch=at.batch, step=at.step, epoch=at.epochs)


def timetable_of(trainer: Trainer) -> Timetable:
    """Read where a fit stands, and when it takes a step."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress  # declared as trackers without these counts
    epochs: Any = trainer.fit_loop.epoch_progress
    is_between, length = _is_between_epochs(trainer), trainer.num_training_batches
    epoch, batch = epochs.current.processed, progress.total.processed
    is_automatic = trainer.lightning_module.automatic_optimization
    return Timetable(
        batch=batch,
        step=trainer.global_step if is_automatic else batch,
        epoch=epoch,
        done=0 if is_between else progress.current.processed,
        length=length if is_between else max(length, progress.current.ready),
        accumulation=_accumulation(trainer, epoch, is_between=is_between) if is_automatic else {0: 1},
    )


def _is_between_epochs(trainer: Trainer) -> bool:
    """Whether the count of the current epoch's batches is that of an epoch which has ended."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress  # as above
    fit: Any = trainer.fit_loop.epoch_progress
    batches, epochs = progress.current, fit.current
    if batches.ready > batches.processed:
        return False  # a batch is under way
    has_ended = bool(epochs.started <= epochs.processed)
    if loop.restarted_on_train_batch_end:  # until the first batch is through: completed still counts the file's
        return has_ended
    return has_ended and batches.completed >= batches.processed and not trainer.validating


def _accumulation(trainer: Trainer, epoch: int, *, is_between: bool) -> dict[int, int]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
    plans = [each for each in callbacks if is_instance_of(each, "GradientAccumulationScheduler")]
    if not plans:
        return {0: trainer.accumulate_grad_batches}
    planned: Any = plans[0]
    # What holds in an epoch that runs is the trainer's; it takes the planned value at an epoch's start.
    now = planned.get_accumulate_grad_batches(epoch) if is_between else trainer.accumulate_grad_batches
    following = {epoch + 1: planned.get_accumulate_grad_batches(epoch + 1)}
    return {0: now} | following | {first: size for first, size in planned.scheduling.items() if first > epoch}


_End = tuple[float, float, float]
_ENDLESS = (math.inf, math.inf, math.inf)


def _end_by_epochs(trainer: Trainer, now: Timetable) -> _End:
    """Batches, steps and epochs of a fit that ends by ``max_epochs``."""
    goal = trainer.max_epochs
    if goal is None or goal < 0:
        return _ENDLESS
    if math.isfinite(now.length):
        at = now.after_epochs(goal - now.epoch)
        return at.batch, at.step, goal
    if not now.epoch:
        return math.inf, math.inf, goal
    # Of data without a length whole epochs are all that is known.
    return now.batch * goal / now.epoch, now.step * goal / now.epoch, goal


def _end_by_steps(trainer: Trainer, now: Timetable) -> _End:
    """Batches, steps and epochs of a fit that ends by ``max_steps``."""
    goal, taken = trainer.max_steps, trainer.global_step
    if goal < 0:
        return _ENDLESS
    if taken >= goal:
        return now.batch, now.step, now.epochs
    if trainer.lightning_module.automatic_optimization:
        at = now.after_steps(goal - taken)
        return at.batch, goal, at.epochs if math.isfinite(now.length) else math.inf
    if not taken:
        return _ENDLESS
    # max_steps counts the steps of all optimizers; a batch takes as many as it has taken so far.
    batches = now.batch * goal / taken
    epochs = now.epochs + (batches - now.batch) / now.length if math.isfinite(now.length) else math.inf
    return batches, batches, epochs
