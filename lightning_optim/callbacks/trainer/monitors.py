"""Monitors of a metric: checkpointing and early stopping, kept from preferring the uncompressed model."""

from __future__ import annotations

import math
from typing import Any, final

from lightning.pytorch import Trainer

from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.surgery.patch import Patches


def _callbacks_of(trainer: Any, kind: str) -> list[Any]:
    return [callback for callback in trainer.callbacks if is_instance_of(callback, kind)]


@final
class SuspendedMonitors:
    """Monitors whose judgement waits: no early stopping until ``resume``, which then makes every "best" start afresh.

    An uncompressed epoch nearly always scores best. Once the target state is reached, monitors resume: what
    ``ModelCheckpoint`` and ``EarlyStopping`` remember is of another model, and is forgotten. Checkpoints are
    written all along, so that a killed run can be resumed.
    """

    def __init__(self) -> None:
        self._patches = Patches()
        self._is_suspended = False

    def suspend(self, trainer: Trainer) -> None:
        """Stop early stopping from judging; a second call does nothing."""
        if self._is_suspended:
            return
        self._is_suspended = True
        for callback in _callbacks_of(trainer, "EarlyStopping"):
            for hook in ("on_validation_end", "on_train_epoch_end"):
                self._patches.wrap(callback, hook, lambda original, *args, **kwargs: None)

    def resume(self, trainer: Trainer) -> None:
        """Let early stopping judge again, and forget every "best" so far; nothing happens if none was suspended."""
        if not self._is_suspended:
            return
        self.release()
        for callback in _callbacks_of(trainer, "ModelCheckpoint"):
            _forget_best_checkpoints(trainer, callback)
        for callback in _callbacks_of(trainer, "EarlyStopping"):
            callback.wait_count = 0
            callback.stopped_epoch = 0
            worst = math.inf if callback.mode == "min" else -math.inf
            callback.best_score = callback.best_score.new_tensor(worst)

    def release(self) -> None:
        """Take the patches off and forget nothing: for teardown and exceptions."""
        self._patches.undo()
        self._is_suspended = False


def _forget_best_checkpoints(trainer: Trainer, callback: Any) -> None:
    if callback.monitor is None:
        return  # it keeps the newest, whatever its score
    keeps_all = callback.save_top_k == -1
    stale = [path for path in callback.best_k_models if path != callback.last_model_path]
    callback.best_k_models = {}
    callback.kth_best_model_path = callback.best_model_path = ""
    callback.best_model_score = callback.current_score = None
    callback.kth_value = callback.kth_value.new_tensor(math.inf if callback.mode == "min" else -math.inf)
    if trainer.is_global_zero and not keeps_all:
        for path in stale:
            trainer.strategy.remove_checkpoint(path)
