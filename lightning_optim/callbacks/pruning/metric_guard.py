"""Metric guard: pruning goes on until a metric falls too far, then training goes back and less is tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_optim.callbacks.pruning.last_good import LastGoodState
from lightning_optim.callbacks.pruning.network import PrunedNetwork
from lightning_optim.callbacks.pruning.schedule_checks import closes_within_fit
from lightning_optim.callbacks.trainer.cooldown import Cooldown
from lightning_optim.callbacks.trainer.lightning_private import is_validation_due
from lightning_optim.callbacks.trainer.messages import tell
from lightning_optim.callbacks.trainer.validations import validations_left
from lightning_optim.pruning.structure.base import Shrink
from lightning_optim.pruning.until.metric_drop import MetricDrop, Verdict
from lightning_optim.pruning.until.search import SparsitySearch
from lightning_optim.schedule.base import Schedule
from lightning_optim.window import Window

# A metric that has risen so many times the allowed drop was not measured on a trained model.
_UNTRAINED = 10.0


@final
class MetricGuard:
    """Metric guard: judges the model at the end of each validation, and saves the last state that was good.

    Channels that are to be removed are only masked until a validation accepts that: too much pruning can then be
    undone, and the saved state has the shape of the live network.

    Args:
        setting: Metric and allowed drop; ``None`` judges nothing.
        shrink: When the structure removes channels.
        schedule: The sparsity that is asked for.
        window: When; if it ends with the fit, so does the search.
        pruned: The live network; its state says which sparsity is reached.
    """

    def __init__(
        self, setting: MetricDrop | None, shrink: Shrink, schedule: Schedule, window: Window, pruned: PrunedNetwork
    ) -> None:
        self._setting, self._shrink, self._schedule, self._window = setting, shrink, schedule, window
        self._pruned = pruned
        self._watch = setting.start() if setting is not None else None
        self._search = SparsitySearch(schedule, 1.0 if setting is None else setting.tolerance)
        self._cooldown = Cooldown(0.0 if setting is None else setting.cooldown)
        self._good = LastGoodState(pruned)
        self._has_judged, self._has_warned = False, False
        self._is_stopped = False

    @property
    def is_on(self) -> bool:
        """Whether there is a metric to judge by."""
        return self._watch is not None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is tried."""
        return self._is_stopped

    def next_sparsity(self, progress: float) -> float | None:
        """Return the sparsity to reach at ``progress`` of the window; the present one, if nothing may be pruned."""
        if self._watch is None:
            return self._schedule(progress)
        if self._is_stopped or not self._watch.is_ready:
            return self._reached
        return self._search.next_sparsity(progress, self._reached, self._watch.share)

    def note_step(self, sparsity: float) -> None:
        """Note a pruning step."""
        self._search.note_step(sparsity)

    def start(self, trainer: Trainer, progress: float | None) -> None:
        """Begin a fit: the model is validated if pruning begins with it, and the metric is not known yet.

        A resumed model is validated too if its checkpoint was written between a batch and the validation that follows
        it. Lightning leaves that validation out; an uninterrupted fit was judged by it.

        Args:
            trainer: The trainer of this rank.
            progress: Progress through the window.

        Raises:
            ValueError: If nothing would ever be judged.
        """
        if self._watch is None:
            return
        if not trainer.enable_validation:
            raise ValueError(
                f"until needs {self._monitor!r} from validation, but this fit has none: give validation data, "
                "a validation_step that logs it, and limit_val_batches above 0"
            )
        self._cooldown.attach(trainer)
        if trainer.fit_loop.epoch_loop.restarted_on_train_batch_end and is_validation_due(trainer):
            _validate(trainer)
        elif not self._watch.is_ready and progress is not None:
            _validate(trainer)
            self._has_judged = False  # of what is pruned, nothing is

    def begin_batch(self, trainer: Trainer) -> None:
        """Note that the network is trained on."""
        if self._watch is None:
            return
        self._good.note_training()
        if self._is_stopped:
            self._cooldown.stop()
        else:
            self._cooldown.note_batch(trainer)

    def save_unpruned(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the model before its first pruning step, if no validation came before it."""
        if self.is_on and not self._good:
            self._good.save(trainer, pl_module)

    def judge(self, trainer: Trainer, pl_module: LightningModule, progress: float) -> bool:
        """Judge the validation that has just ended, and go back if it is not good enough; a collective call.

        Args:
            trainer: The trainer of this rank.
            pl_module: Its module.
            progress: Progress through the window.

        Returns:
            Whether training went back to an earlier state.

        Raises:
            ValueError: If the metric was not logged.
        """
        assert self._watch is not None
        value = self._metric(trainer)
        self._has_judged = True
        reached = self._reached or 0.0
        if not reached and not self._search.has_failed:
            self._watch.note(value)
            self._good.save(trainer, pl_module)
            return False
        left = validations_left(trainer) if closes_within_fit(trainer, self._window) else math.inf
        verdict = self._watch.judge(value, left)
        good = self._good.reached or 0.0
        self._search.judge(verdict, progress, reached, good, self._watch.pace)
        if verdict is Verdict.REST:
            return False
        if verdict is Verdict.GOOD:
            self._warn_if_untrained(value)
            good = reached
        ends = left <= 1 and not self._search.follows_schedule
        self._is_stopped = self._is_stopped or ends or self._search.is_over(progress, good)
        if verdict is Verdict.BACK:
            self._go_back(trainer, pl_module, value)
        if verdict is Verdict.GOOD or self._is_stopped:
            self._keep(trainer, pl_module)
        return verdict is Verdict.BACK

    def _go_back(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        assert self._watch is not None
        reached, good = self._reached or 0.0, self._good.reached or 0.0
        gives_back = self._watch.is_close and not self._is_stopped
        how = "what was pruned since comes back" if gives_back else f"back to {good:g}"
        tell(trainer, f"{self._monitor} is {value:g} at sparsity {reached:g}, where {good:g} was good: {how}")
        if gives_back:
            self._good.give_back(trainer, pl_module)
        else:
            self._good.go_back(trainer, pl_module)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a fit: go back from a state that no validation found good.

        If the window ends with this fit, a resumed one tries nothing more.

        Raises:
            ValueError: If no validation came at all.
        """
        if self._watch is None:
            return
        if not self._has_judged:
            raise ValueError(
                f"until needs {self._monitor!r} from validation, but the fit ended before the first one; "
                "validate more often (val_check_interval, check_val_every_n_epoch) or train longer"
            )
        if self._search.is_resting or (self._reached or 0.0) != (self._good.reached or 0.0):
            self._good.go_back(trainer, pl_module)
        if closes_within_fit(trainer, self._window):
            self._is_stopped = True
            self._keep(trainer, pl_module)

    def release(self) -> None:
        """Give the optimizers their learning rates back."""
        self._cooldown.release()

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._shrink == "update" or self._is_stopped:
            self._pruned.cut_due(trainer, pl_module)
        self._good.save(trainer, pl_module)

    def _warn_if_untrained(self, value: float) -> None:
        assert self._watch is not None
        if self._watch.rise(value) > _UNTRAINED * self._watch.allowed > 0.0 and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"{self._monitor} is {value:g}, far better than before pruning: was the model still to be trained? A "
                "drop from there hardly shows; let window.begin come after its training, or give until.reference"
            )

    @property
    def _reached(self) -> float | None:
        """The sparsity of the live network."""
        return self._pruned.state.reached

    @property
    def _monitor(self) -> str:
        assert self._setting is not None
        return self._setting.monitor

    def _metric(self, trainer: Trainer) -> float:
        """The metric's mean over the ranks, so that all of them decide alike."""
        logged = trainer.callback_metrics
        if self._monitor not in logged:
            raise ValueError(
                f"until needs {self._monitor!r}, but validation logged {sorted(logged) or 'nothing'}; "
                "set until.monitor to one of these, or log it in validation_step"
            )
        value = logged[self._monitor].detach().to(trainer.strategy.root_device).float()
        return float(trainer.strategy.reduce(value.clone(), reduce_op="mean"))

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and primitives; empty without a metric."""
        if self._watch is None:
            return {}
        return {
            "watch": self._watch.state_dict(),
            "search": self._search.state_dict(),
            "good": self._good.state_dict(),
            "has_judged": self._has_judged,
            "is_stopped": self._is_stopped,
        }

    def load_state_dict(self, trainer: Trainer, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``; one of a fit without a metric changes nothing."""
        if self._watch is None or not state:
            return
        self._watch.load_state_dict(state["watch"])
        self._search.load_state_dict(state["search"])
        self._good.load_state_dict(trainer, pl_module, state["good"])
        self._has_judged, self._is_stopped = state["has_judged"], state["is_stopped"]


def _validate(trainer: Trainer) -> None:
    """Run the fit's validation, at its start."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    trainer.validating = True
    loop.restarting = False
    loop.run()
    trainer.training = True
