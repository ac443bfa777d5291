"""Metric guard: pruning goes on until a metric falls too far, then training goes back and less is tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_optim.callbacks.pruning.network import PrunedNetwork
from lightning_optim.callbacks.trainer.lightning_private import is_validation_due
from lightning_optim.callbacks.trainer.reshape import averaged_copies
from lightning_optim.pruning.structure.base import Shrink
from lightning_optim.pruning.until.metric_drop import MetricDrop, Verdict
from lightning_optim.pruning.until.search import SparsitySearch
from lightning_optim.schedule.base import Schedule
from lightning_optim.surgery.snapshot import Snapshot


@final
class MetricGuard:
    """Metric guard: judges the model at the end of each validation, and saves the last state that was good.

    Channels that are to be removed are only masked until a validation accepts that: too much pruning can then be
    undone, and the saved state has the shape of the live network.

    Args:
        setting: Metric and allowed drop; ``None`` judges nothing.
        shrink: When the structure removes channels.
        schedule: The sparsity that is asked for.
        pruned: The live network; its state says which sparsity is reached.
    """

    def __init__(self, setting: MetricDrop | None, shrink: Shrink, schedule: Schedule, pruned: PrunedNetwork) -> None:
        self._setting, self._shrink, self._schedule, self._pruned = setting, shrink, schedule, pruned
        self._watch = setting.start() if setting is not None else None
        self._search = SparsitySearch(schedule, 1.0 if setting is None else setting.tolerance)
        self._snapshot = Snapshot()
        self._saved: dict[str, Any] = {}
        self._has_judged = False
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
        return self._search.next_sparsity(progress, self._reached)

    def note_step(self, sparsity: float) -> None:
        """Note a pruning step."""
        self._search.note_step(sparsity)

    def check(self, trainer: Trainer) -> None:
        """Refuse a fit without validation.

        Raises:
            ValueError: If nothing would ever be judged.
        """
        if self._setting is not None and not trainer.enable_validation:
            raise ValueError(
                f"until needs {self._setting.monitor!r} from validation, but this fit has none: give validation data, "
                "a validation_step that logs it, and limit_val_batches above 0"
            )

    def catch_up(self, trainer: Trainer) -> None:
        """Validate a resumed model, if its checkpoint was written between a batch and the validation that follows it.

        Lightning leaves that validation out; an uninterrupted fit was judged by it.
        """
        loop = trainer.fit_loop.epoch_loop
        if self._watch is None or not loop.restarted_on_train_batch_end:
            return
        if is_validation_due(trainer):
            trainer.validating = True
            loop.val_loop.restarting = False
            loop.val_loop.run()
            trainer.training = True

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the present state as good."""
        self._snapshot.take(pl_module, trainer.optimizers, averaged_copies(trainer))
        self._saved = self._pruned.state_dict()

    def save_unpruned(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the model before its first pruning step, if no validation came before it."""
        if self.is_on and not self._snapshot:
            self.save(trainer, pl_module)

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
            self.save(trainer, pl_module)
            return False
        verdict = self._watch.judge(value)
        self._search.judge(verdict, progress, reached, self._good or 0.0)
        if verdict is Verdict.REST:
            return False
        if verdict is Verdict.BACK:
            rank_zero_info(f"{self._monitor} fell to {value:g} at sparsity {reached:g}: back to {self._good or 0:g}")
            self._go_back(trainer, pl_module)
        self._is_stopped = self._is_stopped or self._search.is_over(progress, self._reached or 0.0)
        if verdict is Verdict.GOOD or self._is_stopped:
            self._keep(trainer, pl_module)
        return verdict is Verdict.BACK

    def finish(self, trainer: Trainer, pl_module: LightningModule, *, is_last: bool) -> None:
        """End a fit: go back from a state that no validation found good.

        Args:
            trainer: The trainer of this rank.
            pl_module: Its module.
            is_last: Whether the window ends with this fit: then a resumed fit tries nothing more.

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
        if self._search.is_resting or (self._reached or 0.0) != (self._good or 0.0):
            self._go_back(trainer, pl_module)
        if is_last and not self._is_stopped:
            self._is_stopped = True
            self._keep(trainer, pl_module)

    def _go_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.zero_grad(set_to_none=True)
        self._snapshot.put_back(pl_module, trainer.optimizers, averaged_copies(trainer))
        self._pruned.load_state_dict(pl_module, self._saved)
        self._pruned.watch(trainer)

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._shrink == "update" or self._is_stopped:
            self._pruned.cut_due(trainer, pl_module)
        self.save(trainer, pl_module)

    @property
    def _reached(self) -> float | None:
        """The sparsity of the live network."""
        return self._pruned.state.reached

    @property
    def _good(self) -> float | None:
        """The sparsity of the last good state."""
        reached: float | None = self._saved["reached"]
        return reached

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
            "snapshot": self._snapshot.state_dict(),
            "saved": dict(self._saved),
            "has_judged": self._has_judged,
            "is_stopped": self._is_stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``; one of a fit without a metric changes nothing."""
        if self._watch is None or not state:
            return
        self._watch.load_state_dict(state["watch"])
        self._search.load_state_dict(state["search"])
        self._snapshot.load_state_dict(state["snapshot"])
        self._saved = dict(state["saved"])
        self._has_judged, self._is_stopped = state["has_judged"], state["is_stopped"]
