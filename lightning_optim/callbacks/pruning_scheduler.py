"""Prune while training: the Lightning shell."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_optim.callbacks.agreement import check_ranks_agree
from lightning_optim.callbacks.clock import clock_of
from lightning_optim.callbacks.gate import CheckpointGate
from lightning_optim.callbacks.pricing import agreed_prices
from lightning_optim.callbacks.pruning_evidence import LAYERS, PruningEvidence
from lightning_optim.callbacks.reshape import Reshaper, averaged_copies
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph.capture import capture
from lightning_optim.graph.coupling import Coupling, couple
from lightning_optim.pruning.allocation.base import Allocation
from lightning_optim.pruning.allocation.priced import PricedAllocation
from lightning_optim.pruning.allocation.uniform import Uniform
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.criterion.magnitude import Magnitude
from lightning_optim.pruning.evidence import Seen
from lightning_optim.pruning.masks import Masks
from lightning_optim.pruning.pruner import Pruner
from lightning_optim.pruning.shrink import Choice, shrink
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.channel import targeted_groups
from lightning_optim.pruning.structure.weight import Weight
from lightning_optim.schedule.base import Schedule
from lightning_optim.surgery.cut import CutPlan
from lightning_optim.surgery.example import ExampleInputs
from lightning_optim.surgery.select import Targets, find_network, plain_name, submodule
from lightning_optim.surgery.shard import local, reshard, shard_group
from lightning_optim.window import Window


@final
class PruningScheduler(Callback):
    """Prune any LightningModule while it trains, to an exact sparsity, physically smaller if asked.

    At each jump of ``window`` the sparsity of ``schedule`` is reached: ``criterion`` scores, ``structure`` says what
    falls together, ``allocation`` spreads it over the layers. Between jumps training is the fine-tuning. Masked weights
    are held at zero by one fused operation after each optimizer step; the module's parameters and checkpoint keys stay
    the user's. While the final sparsity is not reached, early stopping does not judge; what was "best" before it is
    forgotten.

    Args:
        schedule: Sparsity, in ``[0, 1)``, over the window; always of the original number of weights or channels.
        criterion: How important a weight is; ``|w|`` by default.
        structure: What falls together; single weights by default.
        allocation: How the sparsity is spread over layers; uniformly by default. Under a budget, the schedule's value
            is the share of the cost to remove.
        targets: Layers to prune, by names relative to the LightningModule; convolutions and linears by default.
        window: When, in jumps of ``every``; by default twenty jumps over the first three quarters of the fit.
        network: Name of the network in the LightningModule; ``None`` finds it, ``""`` is the module itself.
        name: Tells several instances in one Trainer apart; the metric becomes ``pruning/<name>/sparsity``.

    Raises:
        ValueError: If the schedule leaves ``[0, 1)``, or falls where channels are physically removed.

    Example:
        >>> from lightning_optim.schedule.cubic import Cubic
        >>> PruningScheduler(schedule=Cubic(end=0.8)).sparsity
        0.0
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        criterion: Criterion | None = None,
        structure: Structure | None = None,
        allocation: Allocation | PricedAllocation | None = None,
        targets: Targets | None = None,
        window: Window | None = None,
        network: str | None = None,
        name: str | None = None,
    ) -> None:
        self.criterion = criterion or Magnitude()
        self.structure = structure or Weight()
        self.schedule = schedule
        self.targets = targets or Targets()
        self.window = window or Window(end=0.75, every=0.0375)
        self.network = network
        self.name = name
        _check_schedule(schedule, self.structure)
        self.allocation = allocation or Uniform()
        self._gate = CheckpointGate()
        self._hooks: list[RemovableHandle] = []
        self._seen_step: int | None = None
        self._network_name = ""
        self._owner: LightningModule | None = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pruner = Pruner(self.criterion, self.structure, self.allocation)
        self._masks = Masks()
        self._evidence = PruningEvidence(self.criterion, self.structure)
        self._example = ExampleInputs()
        self._reshaper = Reshaper()
        self._restored: Mapping[str, Any] | None = None
        self._reached: float | None = None
        self._refused: set[str] = set()

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @property
    def sparsity(self) -> float:
        """The sparsity reached by the last pruning step; 0 before the first."""
        return self._reached or 0.0

    @property
    def cut(self) -> dict[str, Any]:
        """What was physically kept: tensor of the network -> its cuts ``[dim, kept positions, original size]``."""
        return self._reshaper.state_dict()

    # Setting up: nothing is changed before everything is checked.

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.structure.needs_coupling:
            self._reshaper.check_strategy(trainer, shrinks=self.structure.shrink != "never")
        if self._owner is not None and self._owner is not pl_module:
            self._start_afresh()  # what was pruned is another model's
        self._owner = pl_module
        self._reshaper.prepare_resume(trainer, pl_module, self.state_key, self.network)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._network_name, network = find_network(pl_module, self.network)
        layers = self._layers(pl_module)
        check_ranks_agree(
            trainer,
            (self.schedule, self.criterion, self.structure, self.allocation, self.targets, self.window),
            "pruning",
        )
        if self.structure.needs_coupling and not self._example:
            self._example.watch(network)
        self._evidence.attach(trainer, network, layers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.window.check(clock_of(trainer))
        if self._restored is not None:
            self._take_up(pl_module, self._restored)
            self._restored = None
        if self._reached != self.schedule(1.0):
            self._gate.close(trainer)
        self._enforce(trainer)

    # Each step.

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (step := clock_of(trainer).step) != self._seen_step:  # equal while gradients are being accumulated
            self._seen_step = step
            self._advance(trainer, pl_module)
        self._evidence.open()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._evidence.read_gradients(trainer, optimizer)

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        progress = self.window.progress(clock_of(trainer))
        if progress is not None and self.schedule(progress) != self._reached and self._is_ready(trainer):
            self._prune(trainer, pl_module, self.schedule(progress))
            if progress == 1.0 or self._reached == self.schedule(1.0):
                self._gate.open(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.automatic_optimization and not outputs:
            self._evidence.close()  # the training step returned None, perhaps before any forward pass
        elif self._seen_step is not None:
            self._evidence.take()

    def _is_ready(self, trainer: Trainer) -> bool:
        knows_inputs = not self.structure.needs_coupling or bool(self._example)
        return knows_inputs and self._evidence.is_ready(trainer.current_epoch)

    def _prune(self, trainer: Trainer, pl_module: LightningModule, sparsity: float) -> None:
        network = self._live_network(pl_module)
        reshard(pl_module)
        parameters = _parameters(network)
        coupling = self._couple(network) if self.structure.needs_coupling else None
        seen = self._seen(trainer, pl_module, parameters, coupling)
        if coupling is not None and isinstance(self.allocation, PricedAllocation) and self._pruner.wants_prices:
            weights = {name: layer.weight for name, layer in seen.items()}
            prices = agreed_prices(trainer, self.allocation.cost, network, coupling, weights, self._example)
            self._pruner.learn_prices(prices, self.schedule(1.0))
        group = shard_group([parameters[name] for name in seen])
        keep = self._pruner.decide(sparsity, seen, coupling, group)
        shrinks = self.structure.shrink == "update" or (
            self.structure.shrink == "end" and sparsity == self.schedule(1.0)
        )
        if shrinks and coupling is not None:
            known = len(self._refused)
            self._shrink(trainer, pl_module, coupling, keep)
            if len(self._refused) > known and isinstance(self.allocation, PricedAllocation):
                self._prune(trainer, pl_module, sparsity)  # the others must pay for what stays
                return
        else:
            self._mask(parameters, coupling, keep)
        self._reached = sparsity
        self._evidence.reset()
        self._enforce(trainer)
        self._mend(trainer, pl_module)
        check_ranks_agree(trainer, (sparsity, None if group else self._masks.checksum()), "what is pruned")
        metric = "pruning/sparsity" if self.name is None else f"pruning/{self.name}/sparsity"
        pl_module.log(metric, sparsity, rank_zero_only=True)

    def _mask(self, parameters: dict[str, nn.Parameter], coupling: Coupling | None, keep: Mapping[str, Tensor]) -> None:
        weights = {name: local(parameter.detach()) for name, parameter in parameters.items()}
        self._masks.clear()
        for name, mask in self._pruner.masks(keep, weights, coupling).items():
            self._masks.set(name, parameters[name], mask)
        self._pruner.remember(keep)
        self._masks.apply()

    def _shrink(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling, keep: Mapping[str, Tensor]
    ) -> None:
        network = self._live_network(pl_module)
        groups = targeted_groups(coupling, {name: _parameters(network)[name] for name in keep})
        present = self._pruner.kept_of_present(keep)
        wanted = [(groups[pool], mask.nonzero().squeeze(1)) for pool, mask in present.items() if not mask.all()]
        if wanted:
            plan, refused, error = trainer.strategy.broadcast(self._plan(trainer, network, coupling, wanted))
            if error:
                raise ShrinkError(error)
            for name, reason in refused.items():
                warnings.warn(f"{name} keeps its channels: {reason}", stacklevel=2)
            stays = [group for group in groups.values() if group.name in refused]
            self._refused |= {member.name for group in stays for member in group.members if member.dim == 0}
            self._reshaper.cut(trainer, pl_module, self._network_name, plan)
            self._evidence.cut(plan)
        self._masks.clear()
        self._pruner.remember_removed({pool: mask for pool, mask in keep.items() if pool not in self._refused})

    def _plan(
        self, trainer: Trainer, network: nn.Module, coupling: Coupling, wanted: list[Choice]
    ) -> tuple[CutPlan, dict[str, str], str]:
        """The verified plan of rank 0: batches differ between ranks, and so might what can be verified."""
        if not trainer.is_global_zero:
            return {}, {}, ""
        try:
            done = shrink(copy.deepcopy(network), coupling, wanted, self._example.args, self._example.kwargs)
        except ShrinkError as error:  # raised on every rank: one alone would leave the others waiting
            return {}, {}, str(error)
        return done.plan, done.refused, ""

    def _enforce(self, trainer: Trainer) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            optimizer.register_step_post_hook(self._masks.enforcer(optimizer)) for optimizer in trainer.optimizers
        ]

    def _mend(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self._masks.zero_moments(optimizer)
        for twin in averaged_copies(trainer):
            self._masks.apply_to_copy(submodule(twin, self._network_name))

    # What is pruned, and what is seen of it.

    def _layers(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Targeted layers by their name in the network, without those that are frozen or share another's weight."""
        prefix = f"{self._network_name}." if self._network_name else ""
        chosen = self.targets.select(pl_module, LAYERS)
        layers, weights = {}, set()
        for name, module in chosen.items():
            weight = module.weight
            if name.startswith(prefix) and weight.requires_grad and weight not in weights:
                weights.add(weight)
                layers[name[len(prefix) :]] = module
        if not layers:
            raise TargetError(
                f"all {len(chosen)} targeted layers are frozen, tied or outside {self._network_name!r}: "
                f"{', '.join(list(chosen)[:5])}"
            )
        return layers

    def _seen(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        parameters: dict[str, nn.Parameter],
        coupling: Coupling | None,
    ) -> dict[str, Seen]:
        weights = {f"{name}.weight": parameters[f"{name}.weight"] for name in self._layers(pl_module)}
        return {
            name: seen
            for name, seen in self._evidence.seen(trainer, weights, coupling).items()
            if name not in self._refused and (coupling is None or coupling.group_of(name, 0) is not None)
        }

    def _couple(self, network: nn.Module) -> Coupling:
        return couple(capture(network, self._example.args, self._example.kwargs))

    def _live_network(self, pl_module: LightningModule) -> nn.Module:
        network = submodule(pl_module, self._network_name)
        return getattr(network, "_orig_mod", network)

    # State.

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return dict(self._restored)
        return {
            "reached": self._reached,
            "pruner": self._pruner.state_dict(),
            "masks": self._masks.state_dict(),
            "evidence": self._evidence.state_dict(),
            "example": self._example.state_dict(),
            "cut": self._reshaper.state_dict(),
            "refused": sorted(self._refused),
        }

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._restored is None:  # which holds every rank's already
            checkpoint["callbacks"][self.state_key]["evidence"] = self._evidence.gather(trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
        self._reached = state_dict["reached"]
        self._example.load_state_dict(state_dict["example"])

    def _take_up(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        reshard(pl_module)
        parameters = _parameters(self._live_network(pl_module))
        if shard_group([*parameters.values()]) is None:
            self._pruner.load_state_dict(state["pruner"])
            self._masks.load(state["masks"], parameters)
        elif self._reached:
            # Each rank holds another part of the weights: the zeros say what was masked.
            self._masks.recover(state["masks"], parameters)
            self._pruner.remember({name: local(parameters[name].detach()) != 0 for name in state["masks"]})
        self._evidence.load_state_dict(state["evidence"], pl_module.trainer)
        self._reshaper.load_state_dict(state["cut"])
        self._refused = set(state["refused"])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gate.release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._evidence.remove()
        self._example.release()
        self._gate.release()
        self._reshaper.release()
        self._seen_step = None


def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    return {plain_name(name): parameter for name, parameter in network.named_parameters()}


def _check_schedule(schedule: Schedule, structure: Structure) -> None:
    values = [schedule(step / 100) for step in range(101)]
    for value in values:
        if not 0.0 <= value < 1.0:
            raise ValueError(f"sparsity must be in [0, 1), but the schedule reaches {value:g}")
    # A sparsity written to three digits may lie above that of a pattern such as 1:3.
    if max(values) > structure.highest_sparsity + 1e-3:
        raise ValueError(
            f"the schedule reaches a sparsity of {max(values):g}, but {structure} ends at "
            f"{structure.highest_sparsity:g}: let it end there, or choose another pattern"
        )
    if structure.shrink != "never" and any(after < before for before, after in itertools.pairwise(values)):
        raise ValueError("channels that were removed do not come back: the schedule must not fall")
