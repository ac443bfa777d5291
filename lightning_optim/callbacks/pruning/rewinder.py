"""Rewinding in a fit: back to an early step after each pruning step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer

from lightning_optim.callbacks.trainer.clock import clock_after, clock_of
from lightning_optim.pruning.rewind import Rewind
from lightning_optim.schedule.base import Schedule
from lightning_optim.surgery.snapshot import Snapshot
from lightning_optim.window import Window


@final
class Rewinder:
    """Rewinding: remembers a model and its learning rates at one step of a fit, and restores them.

    Args:
        setting: What is put back, and to which step; ``None`` does nothing.
    """

    def __init__(self, setting: Rewind | None) -> None:
        self._setting = setting
        self.snapshot = Snapshot()
        self._rates: list[list[float]] = []
        self._schedulers: list[dict[str, Any]] = []
        self._is_held = False

    def check(self, trainer: Trainer, window: Window, schedule: Schedule) -> None:
        """Refuse a step that lies after the first pruning step, or before the start of a fit that goes on.

        Raises:
            ValueError: If it does, or if there is no learning-rate schedule to go back in.
        """
        if self._setting is None:
            return
        step, clock = self._setting.step, clock_of(trainer)
        if self._setting.restores == "learning_rate" and not trainer.lr_scheduler_configs:
            raise ValueError(
                "there is no learning-rate schedule to rewind: configure_optimizers returns none; "
                "return one, or rewind weights"
            )
        if clock.step > step and not self._is_held:
            raise ValueError(
                f"rewind goes back to step {step}, but this fit goes on from step {clock.step} without it: "
                "resume from a checkpoint written under rewind, or set a later step"
            )
        if clock.step >= step:
            return
        progress = window.progress(clock_after(trainer, step - 1))
        if progress is not None and schedule(progress) > 0.0:
            raise ValueError(
                f"rewind goes back to step {step}, but pruning begins before it; let window.begin come after it"
            )

    def watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the model and its learning rates, if the step has come."""
        if self._setting is None:
            return
        late = clock_of(trainer).step - self._setting.step
        if late < 0 or (late and self._is_held):  # late where the data had no batch for that very step
            return
        if self._setting.restores == "weights":
            self.snapshot.take(pl_module, trainer.optimizers)
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        self._schedulers = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]
        self._is_held = True

    def rewind(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what the setting says.

        Raises:
            ValueError: If the step has not come yet.
        """
        if self._setting is None:
            return
        if not self._is_held:
            raise ValueError(
                f"rewind goes back to step {self._setting.step}, which has not come; set window.begin later"
            )
        if self.snapshot:
            self.snapshot.put_back(pl_module, trainer.optimizers)
        for config, state in zip(trainer.lr_scheduler_configs, self._schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))
        for optimizer, rates in zip(trainer.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered; empty before the step, and without a setting."""
        if not self._is_held:
            return {}
        return {"snapshot": self.snapshot.state_dict(), "rates": self._rates, "schedulers": self._schedulers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        if self._setting is None or not state:
            return
        self.snapshot.load_state_dict(state["snapshot"])
        self._rates, self._schedulers, self._is_held = list(state["rates"]), list(state["schedulers"]), True
