"""Monitors of a metric: checkpointing, early stopping and plateau schedulers, kept from preferring another model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_optim.callbacks.trainer.best_so_far import (
    BestSoFar,
    CheckpointBest,
    PlateauBest,
    StoppingBest,
    checkpoints_of,
    plateaus_of,
    stoppings_of,
    unknown_plateaus_of,
)
from lightning_optim.callbacks.trainer.lightning_private import EARLY_STOPPING_CHECK, training_metrics
from lightning_optim.surgery.patch import Patches


class Moment(Enum):
    """Moments after which a metric's next value is wholly of the model as it is now.

    Attributes:
        BATCH: A batch begins: for what a training step logs, and for the trainer's own counters.
        VALIDATION: A validation begins.
        EPOCH: An epoch of training ends that the model as it is now was trained for from its first batch on.
    """

    BATCH = "batch"
    VALIDATION = "validation"
    EPOCH = "epoch"


@final
class SuspendedMonitors(Callback):
    """Monitors whose judgement waits: no early stopping until ``resume``, which then makes every "best" start afresh.

    An uncompressed epoch nearly always scores best. Once the target state is reached, monitors resume: what
    ``ModelCheckpoint``, ``EarlyStopping`` and ``ReduceLROnPlateau`` remember is of another model, and is forgotten. It
    is forgotten once more as soon as the monitored metric is measured anew, since until then the trainer still holds
    the other model's value. Checkpoints are written all along, so that a killed run can be resumed.

    It joins the trainer's callbacks from ``suspend`` to the end of the fit.
    """

    def __init__(self) -> None:
        self._patches = Patches()
        self._is_suspended = False
        self._checkpoints: list[CheckpointBest] = []
        self._stoppings: list[StoppingBest] = []
        self._waiting: list[BestSoFar] = []
        self._is_whole_epoch = False
        self._was_waiting, self._has_judged_target = False, False

    @property
    def is_waiting(self) -> bool:
        """Whether the metric of some monitor is not measured anew yet since what is trained has changed."""
        return bool(self._waiting)

    def begin(self, trainer: Trainer, *, is_reached: bool) -> None:
        """Suspend the monitors at the start of a fit, in ``on_train_start``.

        They stay suspended until ``resume``; if the target is reached already, until their metrics are measured anew,
        and if an earlier fit has come that far, not at all.
        """
        was_waiting, has_judged_target = self._was_waiting, self._has_judged_target
        self._was_waiting, self._has_judged_target = False, True
        if not is_reached or was_waiting or not has_judged_target:
            self.suspend(trainer)
        if is_reached:
            self.resume(trainer)
        elif was_waiting:
            self.restart_plateaus(trainer)

    def restore(self, *, was_waiting: bool) -> None:
        """Take over what ``is_waiting`` was when the checkpoint was written that a fit resumes from."""
        self._was_waiting, self._has_judged_target = was_waiting, True

    def suspend(self, trainer: Trainer) -> None:
        """Stop early stopping from judging, and leave the best of an earlier fit alone; a second call does nothing."""
        if self._is_suspended:
            return
        self._is_suspended = True
        self._join(trainer)
        self._checkpoints, self._stoppings = checkpoints_of(trainer), stoppings_of(trainer)
        for checkpoint in self._checkpoints:
            checkpoint.leave_earlier()
            checkpoint.attach(self._patches)
        for stopping in self._stoppings:
            for hook in ("on_validation_end", "on_train_epoch_end", EARLY_STOPPING_CHECK):
                self._patches.wrap(stopping.stopper, hook, self._unless_waiting(stopping))
        for name in unknown_plateaus_of(trainer):
            warnings.warn(
                f"{name} is given a metric, but is no ReduceLROnPlateau: it goes on comparing with the best value of "
                "the uncompressed model; let it hold a ReduceLROnPlateau, or reset it when the target is reached",
                stacklevel=2,
            )

    def resume(self, trainer: Trainer, *, is_validated: bool = False) -> None:
        """Forget every "best" so far, and let early stopping judge what is measured from now on.

        Nothing happens if none was suspended.

        Args:
            trainer: The trainer.
            is_validated: Whether the last validation was of the model as it is now.
        """
        if not self._is_suspended:
            return
        self._is_suspended = False
        self._waiting = [*self._checkpoints, *self._stoppings, *plateaus_of(trainer)]
        self._forget_waiting(trainer)
        if is_validated:
            self._note(trainer, Moment.VALIDATION)

    def restart_plateaus(self, trainer: Trainer) -> None:
        """Let plateau schedulers forget their best, suspended or not: what is trained from now on is another model."""
        others = [best for best in self._waiting if not isinstance(best, PlateauBest)]
        self._waiting = [*others, *plateaus_of(trainer)]
        self._forget_waiting(trainer)

    def release(self) -> None:
        """Take the patches off and forget nothing: for teardown and exceptions."""
        self._patches.undo()
        self._is_suspended = False
        self._checkpoints, self._stoppings, self._waiting = [], [], []

    def __getstate__(self) -> dict[str, Any]:
        """Leave other callbacks and schedulers out of copies and pickles."""
        return vars(SuspendedMonitors())

    # Hooks, from ``suspend`` on.

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_whole_epoch = True

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._note(trainer, Moment.BATCH)
        for best in self._waiting:
            if isinstance(best, PlateauBest):
                best.forget()  # it was given an old value: the trainer asks it at each epoch, validated or not
        self._tidy(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, Moment.VALIDATION)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tidy(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_whole_epoch:
            self._note(trainer, Moment.EPOCH)  # the trainer calls its monitors after all other callbacks

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tidy(trainer)
        for best in self._waiting:
            if isinstance(best, CheckpointBest) and best.is_empty:
                warnings.warn(
                    f"the fit ended before {best.metric!r} was measured of the model that the target was reached with: "
                    f"ModelCheckpoint(monitor={best.metric!r}) has no best; train longer, or validate more often",
                    stacklevel=2,
                )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave(trainer)

    def _forget_waiting(self, trainer: Trainer) -> None:
        for best in self._waiting:
            best.forget()
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress  # declared as a tracker without these counts
        self._is_whole_epoch = progress.current.processed == 0

    def _note(self, trainer: Trainer, moment: Moment) -> None:
        """Let those judge whose metric is measured anew from this moment on."""
        ready = [best for best in self._waiting if _moment_of(trainer, best.metric) is moment]
        for best in ready:
            best.forget()
        self._waiting = [best for best in self._waiting if best not in ready]

    def _tidy(self, trainer: Trainer) -> None:
        if not self._is_suspended:
            for checkpoint in self._checkpoints:
                checkpoint.tidy(trainer)

    def _unless_waiting(self, stopping: StoppingBest) -> Callable[..., Any]:
        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return None if self._is_suspended or stopping in self._waiting else original(*args, **kwargs)

        return call

    # A new list each time: the trainer may be going through the old one.

    def _join(self, trainer: Trainer) -> None:
        self._leave(trainer)
        trainer.callbacks = [*trainer.callbacks, self]  # type: ignore[attr-defined]  # set by the trainer

    def _leave(self, trainer: Trainer) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
        others = [callback for callback in callbacks if callback is not self]
        trainer.callbacks = others  # type: ignore[attr-defined]  # as above


def _moment_of(trainer: Trainer, metric: str | None) -> Moment:
    logged = training_metrics(trainer)
    if metric in logged:
        return Moment.EPOCH if logged[metric] else Moment.BATCH
    if metric in ("step", "epoch"):
        return Moment.BATCH
    return Moment.VALIDATION if trainer.enable_validation else Moment.EPOCH
