"""Best so far: what checkpointing, early stopping and plateau schedulers remember, and how they forget it."""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import override

from lightning_optim.callbacks.trainer.lightning_classes import derives_from_lightning
from lightning_optim.surgery.patch import Patches


class BestSoFar(ABC):
    """Best value so far of one metric, as one monitor remembers it.

    Args:
        metric: The monitored metric; ``None`` if nobody says which one.
    """

    def __init__(self, metric: str | None) -> None:
        self.metric = metric

    @abstractmethod
    def forget(self) -> None:
        """Let the monitor's next value be the best one."""


@final
class CheckpointBest(BestSoFar):
    """Best checkpoints of a ``ModelCheckpoint`` that has a monitor.

    A forgotten file of this fit goes when a later one is on disk, so that there is always one to resume from. It goes
    by being written over if both have the same name.

    Args:
        saver: The ``ModelCheckpoint``.
    """

    def __init__(self, saver: Any) -> None:
        super().__init__(saver.monitor)
        self._saver = saver
        self._superseded: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether there is no best checkpoint."""
        return not self._saver.best_k_models

    def attach(self, patches: Patches) -> None:
        """Let names of forgotten files count as free: a later file takes such a name over."""
        patches.wrap(
            self._saver,
            "file_exists",
            lambda original, path, trainer: path not in self._superseded and original(path, trainer),
        )

    def leave_earlier(self) -> None:
        """Forget what an earlier fit has written; its files stay, and will not be written over."""
        saver = self._saver
        if saver.best_k_models:
            warnings.warn(
                f"the best of an earlier fit are of another model: ModelCheckpoint(monitor={self.metric!r}) compares "
                f"with them no more, and they stay where they are: {', '.join(saver.best_k_models)}",
                stacklevel=2,
            )
        self._clear()

    @override
    def forget(self) -> None:
        if self._saver.save_top_k != -1:  # which keeps all
            self._superseded.update(self._saver.best_k_models)
        self._clear()

    def tidy(self, trainer: Trainer) -> None:
        """Remove forgotten files once a later one is on disk; a collective call."""
        saver = self._saver
        if not saver.best_k_models:
            return
        if len(saver.best_k_models) < saver.save_top_k:  # later on the callback finds it by itself
            worst = (max if saver.mode == "min" else min)(saver.best_k_models, key=saver.best_k_models.get)
            saver.kth_best_model_path, saver.kth_value = worst, saver.best_k_models[worst]
        self._superseded.difference_update(saver.best_k_models)
        if self._superseded and any(saver.file_exists(path, trainer) for path in saver.best_k_models):
            for path in trainer.strategy.broadcast(self._removable(trainer)):
                trainer.strategy.remove_checkpoint(path)
                self._superseded.discard(path)

    def _removable(self, trainer: Trainer) -> list[str]:
        """Forgotten files that no checkpoint callback names, and that no link to the last one leads to."""
        named: set[str] = set()
        for saver in savers_of(trainer):
            named.update(map(os.path.realpath, (*saver.best_k_models, saver.best_model_path, saver.last_model_path)))
        return sorted(path for path in self._superseded if os.path.realpath(path) not in named)

    def _clear(self) -> None:
        saver = self._saver
        saver.best_k_models = {}
        saver.kth_best_model_path = saver.best_model_path = ""
        saver.best_model_score = saver.current_score = None
        saver.kth_value = _worst(saver.mode)


@final
class StoppingBest(BestSoFar):
    """Best value of an ``EarlyStopping``.

    Args:
        stopper: The ``EarlyStopping``.
    """

    def __init__(self, stopper: Any) -> None:
        super().__init__(stopper.monitor)
        self.stopper = stopper

    @override
    def forget(self) -> None:
        stopper = self.stopper
        stopper.wait_count = stopper.stopped_epoch = 0
        stopper.best_score = _worst(stopper.mode)
        stopper.stopping_reason = type(stopper.stopping_reason).NOT_STOPPED
        stopper.stopping_reason_message = None


@final
class PlateauBest(BestSoFar):
    """Best value of a ``ReduceLROnPlateau``; the learning rate stays as it is.

    Args:
        scheduler: The scheduler.
        metric: The monitored metric; ``None`` if nobody says which one.
    """

    def __init__(self, scheduler: ReduceLROnPlateau, metric: str | None) -> None:
        super().__init__(metric)
        self._scheduler = scheduler

    @override
    def forget(self) -> None:
        self._scheduler.best = self._scheduler.mode_worse
        self._scheduler.num_bad_epochs = self._scheduler.cooldown_counter = 0


def savers_of(trainer: Trainer) -> list[Any]:
    """Return the checkpoint callbacks of a trainer, also those without a monitor."""
    return _callbacks_of(trainer, "ModelCheckpoint")


def checkpoints_of(trainer: Trainer) -> list[CheckpointBest]:
    """Return the best so far of each checkpoint callback that has a monitor; the others keep the newest."""
    return [CheckpointBest(saver) for saver in savers_of(trainer) if saver.monitor is not None]


def stoppings_of(trainer: Trainer) -> list[StoppingBest]:
    """Return the best so far of each early stopping."""
    return [StoppingBest(stopper) for stopper in _callbacks_of(trainer, "EarlyStopping")]


def plateaus_of(trainer: Trainer) -> list[PlateauBest]:
    """Return the best so far of each plateau scheduler.

    One may stand inside a scheduler of another class, or be an attribute of a module that steps it by itself.
    """
    configs = [(config.scheduler, config.monitor) for config in trainer.lr_scheduler_configs]
    found = {
        plateau: metric
        for holder, metric in [(trainer.lightning_module, None), *configs]
        for plateau in _plateaus_in(holder)
    }
    return [PlateauBest(plateau, metric) for plateau, metric in found.items()]


def unknown_plateaus_of(trainer: Trainer) -> list[str]:
    """Return the classes of schedulers that are given a metric, but are no ``ReduceLROnPlateau`` and hold none."""
    configs = [config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    return [type(config.scheduler).__name__ for config in configs if not [*_plateaus_in(config.scheduler)]]


def _plateaus_in(holder: object) -> Iterator[ReduceLROnPlateau]:
    if isinstance(holder, ReduceLROnPlateau):
        yield holder
        return
    attributes: dict[str, Any] = getattr(holder, "__dict__", {})  # a class with slots has none
    for value in attributes.values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, ReduceLROnPlateau):
                yield part


def _callbacks_of(trainer: Trainer, kind: str) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
    return [callback for callback in callbacks if derives_from_lightning(callback, kind)]


def _worst(mode: str) -> torch.Tensor:
    # Not of the metric's own type: integers have no infinity.
    return torch.tensor(math.inf if mode == "min" else -math.inf)
