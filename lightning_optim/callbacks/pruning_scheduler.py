"""Pruning of any LightningModule while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.pruning.conflicts import PrunerConflicts
from lightning_optim.callbacks.pruning.early_end import warn_of_early_end, warn_of_what_is_missing
from lightning_optim.callbacks.pruning.evidence import PruningEvidence
from lightning_optim.callbacks.pruning.metric_guard import MetricGuard
from lightning_optim.callbacks.pruning.network import PrunedNetwork
from lightning_optim.callbacks.pruning.prices import price
from lightning_optim.callbacks.pruning.regrower import Regrower
from lightning_optim.callbacks.pruning.rewinder import Rewinder
from lightning_optim.callbacks.pruning.schedule_checks import check_schedule
from lightning_optim.callbacks.pruning.step_messages import StepMessages
from lightning_optim.callbacks.pruning.targeted import TargetedLayers, targeted_layers
from lightning_optim.callbacks.pruning.untreated import name_untreated, untreated_layers
from lightning_optim.callbacks.trainer.clock import FitProgress, is_cut_short
from lightning_optim.callbacks.trainer.monitors import SuspendedMonitors
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.pruning.allocation.base import AllocationSetting
from lightning_optim.pruning.allocation.uniform import Uniform
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.magnitude import Magnitude
from lightning_optim.pruning.pruner import Pruner
from lightning_optim.pruning.regrow.base import Regrowth
from lightning_optim.pruning.rewind import Rewind
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.weight import Weight
from lightning_optim.pruning.until.metric_drop import MetricDrop
from lightning_optim.schedule.base import Schedule
from lightning_optim.surgery.parametrized import weight_names
from lightning_optim.surgery.select import Targets, find_network
from lightning_optim.surgery.shard import reshard, shard_group
from lightning_optim.surgery.shrunk_checkpoint import mark_shrunk
from lightning_optim.window import Window


@final
@checked
class PruningScheduler(TechniqueCallback):
    """Pruning of any LightningModule while it trains, to an exact sparsity; channels are physically removed if asked.

    At each jump of ``window`` the sparsity of ``schedule`` is reached: ``criterion`` scores the weights, ``structure``
    says which of them are pruned together, and ``allocation`` spreads the sparsity over the layers. Training between
    jumps is the fine-tuning. Masked weights are held at zero by one fused operation after each optimizer step; the
    module's parameters and checkpoint keys stay the user's. Early stopping does not judge before the final sparsity is
    reached; then every "best" starts afresh, and that of plateau schedulers at each pruning step.

    Args:
        schedule: Sparsity, in ``[0, 1)``, over the window; always of the original number of weights or channels.
        criterion: Importance of a weight; ``|w|`` by default.
        structure: Which weights are pruned together; single weights by default.
        allocation: How the sparsity is spread over layers; uniformly by default. Under a budget, the schedule's value
            is the share of the cost to remove.
        targets: Layers to prune, by names relative to the LightningModule; convolutions and linears by default.
        window: When, in jumps of ``every``; by default twenty jumps over the first three quarters of the fit, with
            ``until`` over its first half.
        until: A metric of validation that may fall only so far: then training goes back, and tries less until the fit
            ends. One sparsity is tried between two validations, and the schedule's last when the window closes.
        rewind: What is put back to its state at an early step, after each pruning step.
        regrow: Which weights come back, at each jump of the window after the first; single weights only.
        network: Name of the network in the LightningModule; ``None`` finds it, ``""`` is the module itself.
        name: Tells several instances in one Trainer apart: each needs a name of its own. The metric becomes
            ``pruning/<name>/sparsity``.

    Raises:
        ValueError: If the schedule leaves ``[0, 1)``, or falls where channels are physically removed.

    Example:
        >>> from lightning_optim.schedule import Cubic
        >>> PruningScheduler(schedule=Cubic(end=0.8)).sparsity
        0.0
    """

    def __init__(  # noqa: PLR0913  # one keyword for each question that the grammar asks
        self,
        *,
        schedule: Schedule,
        criterion: Criterion | None = None,
        structure: Structure | None = None,
        allocation: AllocationSetting | None = None,
        targets: Targets | None = None,
        window: Window | None = None,
        until: MetricDrop | None = None,
        rewind: Rewind | None = None,
        regrow: Regrowth | None = None,
        network: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.criterion = criterion or Magnitude()
        self.structure = structure or Weight()
        self.schedule, self.targets = schedule, targets or Targets()
        self.window = window or (Window(end=0.75, every=0.0375) if until is None else Window(end=0.5, every=0.025))
        self.until, self.rewind, self.regrow, self.network = until, rewind, regrow, network
        check_schedule(schedule, self.structure)
        self.allocation = allocation or Uniform()
        self._monitors = SuspendedMonitors()
        self._conflicts = PrunerConflicts(self)
        self._owner: LightningModule | None = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pruned = PrunedNetwork(Pruner(self.criterion, self.structure, self.allocation))
        self._messages = StepMessages(self.name, type(self.structure).__name__)
        self._guard = MetricGuard(self.until, self.structure.shrink, self.schedule, self.window, self._pruned)
        self._rewinder, self._regrower = Rewinder(self.rewind), Regrower(self.regrow)
        self._regrower.check(self.structure, self.window)
        self._progress = FitProgress(self.window)
        self._targeted = TargetedLayers(self.targets)
        self._evidence = PruningEvidence(self.criterion, self.structure)
        self._pruned.followers += [self._rewinder.snapshot, self._evidence]
        self._restored: Mapping[str, Any] | None = None

    @property
    def sparsity(self) -> float:
        """Fraction that is gone of what was targeted, counted in the structure's own unit, such as channels."""
        return self._pruned.state.measured if self._restored is None else float(self._restored["measured"])

    @property
    def target_sparsity(self) -> float:
        """Fraction that the last pruning step was asked for; not all of it may be possible. 0 before the first."""
        return self._reached or 0.0

    @property
    def _reached(self) -> float | None:
        return self._pruned.state.reached if self._restored is None else self._restored["reached"]

    @property
    def cut(self) -> dict[str, Any]:
        """What was physically kept: tensor of the network -> its cuts ``[dim, kept positions, original size]``."""
        return dict((self._pruned.state.state_dict() if self._restored is None else self._restored)["cut"])

    def follow(self, copy: nn.Module) -> None:
        """Mask and cut a copy of the network with it, such as a momentum encoder; to be called before each fit.

        Args:
            copy: A module with the network's names and shapes. Averaged copies of Lightning's callbacks follow anyway.
                What is rewound is rewound in it as well if the LightningModule holds it.
        """
        self._pruned.reshaper.follow(copy)

    # Setting up: nothing is changed before everything is checked.

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reshaper = self._pruned.reshaper
        if stage == "fit" and self.structure.needs_coupling:
            reshaper.check_strategy(trainer, shrinks=self.structure.shrink != "never")
        if stage == "fit" and any(setting is not None for setting in (self.until, self.rewind, self.regrow)):
            reshaper.check_whole(trainer, "until, rewind and regrow")
        if self._owner is not None and self._owner is not pl_module:
            copies = reshaper.newly_followed()
            self._start_afresh()  # the state is that of another model
            self._pruned.reshaper.follow(*copies)
        self._owner = pl_module
        self._pruned.key = self.state_key
        self._pruned.reshaper.attach(trainer, pl_module, self.state_key, self.network, lambda: self.cut)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pruned.name, network = find_network(pl_module, self.network, needs_forward=False)
        layers = self._targeted.trained(pl_module, self._pruned.name)
        how = (self.schedule, self.criterion, self.structure, self.allocation, self.targets, self.window)
        check_ranks_agree(trainer, (*how, self.until, self.rewind, self.regrow), "pruning")
        self._regrower.check_layers(trainer, self.layers(pl_module))
        if self.structure.shrink != "never":
            self._pruned.reshaper.check_optimizers(trainer, network)
        name_untreated(untreated_layers(network, couples=self.structure.needs_coupling), self._pruned.name)
        self._pruned.watch_calls(pl_module)
        self._evidence.attach(trainer, network, layers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._conflicts.check_targets(trainer, pl_module)  # by now every callback knows its network
        self._progress.check(trainer)
        if self._restored is not None:
            self._monitors.restore(was_waiting=self._restored["monitors_wait"])
            self._take_up(trainer, pl_module)
        is_reached = self._guard.is_stopped if self._guard.is_on else self._reached == self.schedule(1.0)
        self._monitors.begin(trainer, is_reached=is_reached)
        self._rewinder.check(trainer, self.window, self.schedule)
        warn_of_early_end(trainer, self.window, self.schedule, self.structure)
        self._pruned.watch(trainer)
        self._guard.start(trainer, self._progress.read(trainer))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._take_up(trainer, pl_module)
        self._guard.begin_batch(trainer)
        if self._targeted.has_changed(trainer):
            self._watch_layers(trainer, pl_module)
        if self._progress.enters_step(trainer):  # not while gradients are being accumulated
            self._advance(trainer, pl_module)
        self._evidence.open()

    def _watch_layers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune what is trained now; what was pruned, too, where scores need no gradients."""
        decided, keeps_frozen = self._pruned.state.decided, not self._evidence.needs_gradients
        layers = self._targeted.trained(pl_module, self._pruned.name, decided, keeps_frozen=keeps_frozen)
        self._evidence.attach(trainer, self._pruned.live(pl_module), layers)
        self._pruned.watch(trainer)

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rewinder.watch(trainer, pl_module)
        progress = self._progress.read(trainer)
        if progress is None:
            return
        aim = self._guard.next_sparsity(progress)
        if aim is not None and self._is_due(trainer, aim):
            if self._has_newcomers:
                self._monitors.suspend(trainer)
            try:
                self._prune(trainer, pl_module, aim)
            except TargetError as error:  # before anything has changed
                self._targeted.wait(trainer, aim, error)
                return
            if not self._guard.is_on and (progress == 1.0 or self._reached == self.schedule(1.0)):
                self._monitors.resume(trainer)
        if self._reached:
            self._regrower.note(progress, self._pruned)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._evidence.read_gradients(trainer, optimizer)
        self._regrower.regrow(trainer, pl_module, self._pruned, optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch is None or (pl_module.automatic_optimization and not outputs):
            self._evidence.close()  # no training step, or it returned None, perhaps before any forward pass
        else:
            self._evidence.take()
        if outputs or not pl_module.automatic_optimization:
            self._pruned.calls.check_reached(self._pruned.name, lambda: self.layers(pl_module))
        if not pl_module.automatic_optimization:
            self._pruned.hold()  # after the steps of an optimizer that the trainer does not know

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._guard.is_on or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._take_up(trainer, pl_module)
        progress = self._progress.read(trainer) or 0.0
        with torch.inference_mode(mode=False):  # saved and cut tensors serve training, as inference tensors can't
            has_gone_back = self._guard.judge(trainer, pl_module, progress)
        if has_gone_back:
            self._evidence.reset()  # it was gathered from the model before
        if self._guard.is_stopped:
            self._monitors.resume(trainer, is_validated=not has_gone_back)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._guard.is_on:
            self._log(pl_module, None)  # until needs whole weights

    @property
    def _has_newcomers(self) -> bool:
        """Whether layers have joined that the last pruning step did not look at; with ``until``, the next one does."""
        joined = self._evidence.layers.keys() - set(self._pruned.state.decided)
        return bool(joined) and bool(self._reached) and not self._guard.is_on

    def _is_due(self, trainer: Trainer, aim: float) -> bool:
        if self._targeted.is_waiting or (aim == self._reached and not self._has_newcomers):
            return False
        return self._pruned.calls.are_known and self._evidence.is_ready(trainer.current_epoch)

    def _prune(self, trainer: Trainer, pl_module: LightningModule, sparsity: float) -> None:
        pruned = self._pruned
        self._guard.save_unpruned(trainer, pl_module)
        reshard(pl_module)
        with pruned.deciding(trainer):
            while self._step(trainer, pl_module, sparsity) and pruned.pruner.cost is not None:
                pass  # a refused group was found by trying, and under a budget other groups must save its cost
        group = shard_group([*pruned.parameters(pl_module).values()])
        pruned.note_sparsity(sparsity, self._evidence.layers, group)
        self._guard.note_step(sparsity)
        self._evidence.reset()
        if sparsity:
            self._rewinder.rewind(trainer, pl_module)
        self._monitors.restart_plateaus(trainer)
        pruned.enforce(trainer, pl_module)
        self._messages.tell(trainer, pruned.state.alive, pruned.parameters(pl_module))
        check_ranks_agree(trainer, (sparsity, None if group is not None else pruned.masks.checksum()), "what is pruned")
        self._log(pl_module, group)

    def _step(self, trainer: Trainer, pl_module: LightningModule, sparsity: float) -> bool:
        """Decide and carry out; return whether channels were refused that the decision counted on."""
        pruned = self._pruned
        parameters = pruned.parameters(pl_module)
        coupling = pruned.couple(pl_module) if self.structure.needs_coupling else None
        if coupling is not None:
            self._conflicts.check_coupling(trainer, pl_module, coupling, parameters)
        seen = self._evidence.prunable(trainer, parameters, coupling, pruned.state.refused)
        if not seen and not self._reached:
            raise TargetError(f"none of {len(self._evidence.layers)} targeted layers can lose channels; target others")
        group = shard_group([parameters[name] for name in seen])
        if coupling is not None and pruned.state.prices is None and pruned.pruner.cost is not None:
            targets = {name: parameters[name] for name in weight_names(self.layers(pl_module))}
            price(trainer, pl_module, pruned, coupling, seen=seen, targets=targets, end=self.schedule(1.0))
        keep = pruned.pruner.decide(pruned.state, sparsity, seen, coupling, group)
        pruned.state = pruned.state.with_sizes(keep)
        refused = pruned.state.refused
        is_final = sparsity == self.schedule(1.0)
        pruned.carry_out(trainer, pl_module, coupling, keep, is_final=is_final, may_go_back=self._guard.is_on)
        return pruned.state.refused != refused

    def _log(self, pl_module: LightningModule, group: ProcessGroup | None) -> None:
        left = float(self._pruned.num_parameters(pl_module, group))
        values = {"sparsity": self.sparsity, "target_sparsity": self.target_sparsity, "parameters": left}
        for noun, value in values.items():
            pl_module.log(self.metric("pruning", noun), value, rank_zero_only=True)

    @override
    def masks(self) -> Mapping[nn.Parameter, Tensor]:
        return self._pruned.masks.by_parameter()

    def layers(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Return the targeted layers by their name in the network, frozen ones too; see ``targeted_layers``."""
        return targeted_layers(pl_module, self.targets, self._pruned.name)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return dict(self._restored)
        return {
            **self._pruned.state_dict(),
            **self._pruned.calls.state_dict(),
            "guard": self._guard.state_dict(),
            "rewinder": self._rewinder.state_dict(),
            "regrower": self._regrower.state_dict(),
            "evidence": self._evidence.state_dict(),
            "progress": self._progress.state_dict(),
            "monitors_wait": self._monitors.is_waiting,
        }

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._restored is None:  # a restored state holds that of every rank already
            checkpoint["callbacks"][self.state_key]["evidence"] = self._evidence.gather(trainer)
        mark_shrunk(checkpoint, self.state_key, self.cut)  # after a fit no hook of the module does

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
        self._pruned.calls.load_state_dict(state_dict)
        self._progress.load_state_dict(state_dict["progress"])

    def _take_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue from a checkpoint; also in the middle of a fit, where a learning-rate finder restores its own."""
        if (state := self._restored) is None:
            return
        self._restored = None
        self._pruned.load_state_dict(pl_module, state)
        self._guard.load_state_dict(trainer, pl_module, state["guard"])
        self._rewinder.load_state_dict(state["rewinder"])
        self._regrower.load_state_dict(state["regrower"])
        self._evidence.load_state_dict(state["evidence"], trainer)
        self._pruned.watch_calls(pl_module)
        self._pruned.watch(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_up(trainer, pl_module)
        self._pruned.hold()
        self._guard.finish(trainer, pl_module)
        if is_cut_short(trainer):
            self.stopped(trainer)

    @override
    def stopped(self, trainer: Trainer) -> None:
        if not self._guard.is_on:
            warn_of_what_is_missing(self.target_sparsity, self.schedule(1.0))

    @override
    def failed(self, pl_module: LightningModule, error: str) -> None:
        self._pruned.explain(pl_module, error)

    @override
    def release(self) -> None:
        self._pruned.release()
        self._evidence.remove()
        self._guard.release()
        self._monitors.release()
