"""Network under pruning: its state, its masks, its cuts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.utils.hooks import RemovableHandle

from lightning_optim.callbacks.pruning.evidence import LAYERS
from lightning_optim.callbacks.trainer.network_observer import NetworkObserver
from lightning_optim.callbacks.trainer.reshape import Reshaper
from lightning_optim.errors import CaptureError, ShrinkError, TargetError, reason_of
from lightning_optim.graph.capture import capture_network
from lightning_optim.graph.coupling import Coupling, couple
from lightning_optim.pruning.masks import Masks
from lightning_optim.pruning.pruner import Pruner
from lightning_optim.pruning.shrink.branches import plan_bypass
from lightning_optim.pruning.shrink.channels import Choice, shrink_channels
from lightning_optim.pruning.state import PruningState
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import CutPlan
from lightning_optim.surgery.example import ExampleInputs
from lightning_optim.surgery.output_layers import output_layers
from lightning_optim.surgery.parametrized import keep_directions, weight_names
from lightning_optim.surgery.parts import PartsNetwork
from lightning_optim.surgery.select import named_modules, plain_name, submodule
from lightning_optim.surgery.shard import local, reshard, shard_group
from lightning_optim.surgery.torch_private import uncompiled


class Follower(Protocol):
    """Holder of tensors that have the network's shapes, and must be cut with them."""

    def cut(self, plan: CutPlan, prefix: str) -> None:
        """Follow a cut: ``plan`` names tensors of the network, which lies below ``prefix`` in its LightningModule."""


@final
class PrunedNetwork:
    """Masks and cuts of one network, and whatever must follow them: optimizers, averaged copies, snapshots.

    Args:
        pruner: Decides what is pruned.

    Attributes:
        name: Plain name of the network in the LightningModule.
        pruner: Decides what is pruned; by rows of layers, once the coupling cannot be known.
        state: What is pruned.
        example: What the network is called with.
        observer: Tells how the training step calls the network, as a whole or in parts.
        reshaper: Removes channels, and brings a fresh module to a checkpoint's shape.
        followers: Holders of tensors that are cut with the network.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.name = ""
        self.pruner = pruner
        self.state = PruningState()
        self.example = ExampleInputs()
        self.observer = NetworkObserver()
        self.reshaper = Reshaper()
        self.followers: list[Follower] = []
        self._masks = Masks()
        self._is_uncapturable = False
        self._hooks: list[RemovableHandle] = []

    def live(self, pl_module: LightningModule) -> nn.Module:
        """The network itself, below any wrapper of ``torch.compile``."""
        network = submodule(pl_module, self.name)
        return uncompiled(network)

    def watch_calls(self, pl_module: LightningModule) -> None:
        """Watch how the training step calls the network, and with what."""
        network = self.live(pl_module)
        self.reshaper.check_copies(network)
        needs_inputs = self.pruner.structure.needs_coupling
        if needs_inputs:
            self.example.watch(network)
            if self.observer.is_known and not self.example:  # what parts are given is seen as they are called
                self.observer.load_state_dict(NetworkObserver().state_dict())
            elif self.example and not self.observer.is_known:
                warnings.warn(
                    "a checkpoint cannot hold how the training step calls the parts of the network, since it gives "
                    "them other objects than tensors; they are watched again: what is due in the first two batches is "
                    "done after them",
                    stacklevel=2,
                )
        if not self.observer.is_known:
            note = partial(self._note_inputs, pl_module) if needs_inputs else None
            self.observer.watch(pl_module, network, note)

    def _note_inputs(self, pl_module: LightningModule, inputs: tuple[Tensor, ...]) -> None:
        self.example.note(self.as_called(pl_module), inputs, {})

    @property
    def knows_calls(self) -> bool:
        """Whether it is known how the network is called, as far as the structure needs it."""
        return not self.pruner.structure.needs_coupling or (self.observer.is_known and bool(self.example))

    def check_reached(self, layers: Callable[[], Mapping[str, nn.Module]]) -> None:
        """Refuse targets that no training step reaches, at the end of one.

        Args:
            layers: Returns the targeted layers, by plain name in the network.

        Raises:
            TargetError: If none of them ran, or the network was not called.
        """
        if self.observer.ran is not None:
            self.observer.check_reached(layers(), "pruned")
        if self.pruner.structure.needs_coupling and self.observer.is_known and not self.example:
            raise TargetError(
                f"the training step never called {self.name or 'the module itself'!r}, so its channels are not known; "
                "set network to what training_step calls"
            )

    def as_called(self, pl_module: LightningModule) -> nn.Module:
        """The network as the training step calls it: itself, or its parts as one module."""
        network, plan = self.live(pl_module), self.observer.plan
        return network if plan is None else PartsNetwork(network, plan)

    def parameters(self, pl_module: LightningModule) -> dict[str, nn.Parameter]:
        """The network's parameters by plain name."""
        return {plain_name(name): parameter for name, parameter in self.live(pl_module).named_parameters()}

    def couple(self, pl_module: LightningModule) -> Coupling | None:
        """Return which channels of the live network can only be removed together.

        Returns:
            ``None`` if the network cannot be captured: rows of layers are then masked, with a warning, and none is cut.

        Raises:
            ShrinkError: If nothing can be decided without the coupling.
        """
        if self._is_uncapturable:
            return None
        try:
            return couple(capture_network(self.as_called(pl_module), self.example.args, self.example.kwargs))
        except CaptureError as error:
            if self.state.cut:
                raise
            self._fall_back(pl_module, reason_of(error))
            return None

    def _fall_back(self, pl_module: LightningModule, reason: str) -> None:
        network = self.as_called(pl_module)
        try:
            self.pruner = self.pruner.by_neuron()
        except ShrinkError as error:
            raise ShrinkError(f"{reason}; {error}") from None
        layers = {name: module for name, module in named_modules(network).items() if isinstance(module, LAYERS)}
        spared = output_layers(network, layers, self.example.args, self.example.kwargs)
        self.state = self.state.with_due({}, frozenset(weight_names({name: layers[name] for name in spared})))
        self._is_uncapturable = True
        warnings.warn(
            f"{reason}: neurons are masked layer by layer and nothing shrinks; {', '.join(sorted(spared))} stays whole",
            stacklevel=2,
        )

    def regrow(self, trainer: Trainer, pl_module: LightningModule, keep: Mapping[str, Tensor]) -> None:
        """Let other single weights be masked; those that come back start at zero, without moments."""
        parameters = self.parameters(pl_module)
        for optimizer in trainer.optimizers:
            self._masks.zero_moments(optimizer)
        for name, mask in keep.items():
            self._masks.set(name, parameters[name], mask)
        self.state = self.state.after_mask({**self.state.alive, **keep})
        self.enforce(trainer, pl_module)

    def note_sparsity(self, sparsity: float, layers: Iterable[str], group: ProcessGroup | None) -> None:
        """Note a finished pruning step.

        Args:
            sparsity: What was asked for.
            layers: Names of the layers that it looked at.
            group: Process group over which the weights are sharded.
        """
        left, total = _summed(self.state.count_left(), group)
        measured = (total - left) / total if total else 0.0
        self.state = dataclasses.replace(self.state, reached=sparsity, measured=measured, decided=tuple(layers))

    def num_parameters(self, pl_module: LightningModule, group: ProcessGroup | None) -> int:
        """Number of the network's parameters that are left, without those that are masked; shared ones count once."""
        (masked,) = _summed((self._masks.num_masked(),), group)
        return sum(parameter.numel() for parameter in self.parameters(pl_module).values()) - masked

    def kept(self) -> dict[str, Tensor]:
        """Boolean masks of this rank's part of every masked weight, by name."""
        return self._masks.kept()

    def checksum(self) -> list[tuple[str, int, int]]:
        """Checksums of every mask, which show whether two ranks differ."""
        return self._masks.checksum()

    # Carrying out a decision.

    def carry_out(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        coupling: Coupling | None,
        keep: Mapping[str, Tensor],
        *,
        is_final: bool,
        may_go_back: bool,
    ) -> None:
        """Mask or remove what is not kept, as the structure says; layers that are frozen by now stay as they are.

        Args:
            trainer: The trainer of this rank.
            pl_module: Its module.
            coupling: Coupled channels of the network, if the structure needs them and they are known.
            keep: What is kept of each pool.
            is_final: Whether the schedule ends with this decision.
            may_go_back: Whether the decision is still to be judged: channels are then only masked.
        """
        keep = self._with_frozen(pl_module, keep)
        shrink = self.pruner.structure.shrink
        if coupling is None or shrink == "never":
            self.mask(pl_module, coupling, keep)
        elif may_go_back:
            self.mask_before_shrink(trainer, pl_module, coupling, keep)
        elif shrink == "update" or is_final:
            self.shrink(trainer, pl_module, coupling, keep)
        else:
            self.mask(pl_module, coupling, keep)

    def _with_frozen(self, pl_module: LightningModule, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters = self.parameters(pl_module)
        frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
        held = {pool: mask for pool, mask in self.state.alive.items() if pool in frozen - self.state.refused}
        return {**held, **keep}

    def mask(self, pl_module: LightningModule, coupling: Coupling | None, keep: Mapping[str, Tensor]) -> None:
        """Zero what is not kept, and hold it at zero."""
        parameters = self.parameters(pl_module)
        weights = {name: local(parameter.detach()) for name, parameter in parameters.items()}
        self._masks.clear()
        masks = self.pruner.masks(self.state, keep, weights, coupling)
        for name, mask in keep_directions(self.live(pl_module), masks).items():
            self._masks.set(name, parameters[name], mask)
        self.state = self.state.after_mask(keep)
        self._masks.apply()

    def shrink(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling, keep: Mapping[str, Tensor]
    ) -> None:
        """Remove the channels that are not kept; those of groups that cannot be cut stay.

        Raises:
            ShrinkError: On every rank, if nothing can be cut.
        """
        if self.pruner.structure.gone_branches(keep, coupling) is not None:
            self.mask_before_shrink(trainer, pl_module, coupling, keep)  # what cannot go stays masked
        else:
            self.state = self._with_due(trainer, pl_module, coupling, keep)
            self._masks.clear()
            self.state = self.state.after_mask(self._without_refused(keep))
        self.cut_due(trainer, pl_module)

    def mask_before_shrink(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling, keep: Mapping[str, Tensor]
    ) -> None:
        """Mask the channels that ``cut_due`` removes later: until then all of them can come back.

        Raises:
            ShrinkError: On every rank, if nothing can be cut.
        """
        self.state = self._with_due(trainer, pl_module, coupling, keep)
        self.mask(pl_module, coupling, self._without_refused(keep))

    def _without_refused(self, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {pool: mask for pool, mask in keep.items() if pool not in self.state.refused}

    def cut_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is due to be removed; a second call does nothing."""
        if not self.state.due:
            return
        sizes = self.reshaper.cut(trainer, pl_module, self.name, self.state.due)
        for follower in self.followers:
            follower.cut(self.state.due, f"{self.name}." if self.name else "")
        self.state = self.state.after_cut(sizes)
        self._masks.follow(self.parameters(pl_module))
        self.watch(trainer)

    def _with_due(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling, keep: Mapping[str, Tensor]
    ) -> PruningState:
        """The state with the cut that removes what is not kept; a warning names what the cut must leave."""
        network, example = self.as_called(pl_module), self.example
        gone = self.pruner.structure.gone_branches(keep, coupling)
        if gone is not None:
            plan, refused = _of_rank_zero(trainer, lambda: plan_bypass(network, gone, example.args, example.kwargs))
            for name, reason in refused.items():
                warnings.warn(f"the branch of {name} stays, masked: {reason}", stacklevel=2)
            return self.state.with_due(plan)
        parameters = self.parameters(pl_module)
        losing = {pool: mask for pool, mask in self.state.of_present(keep).items() if not mask.all()}
        if not losing:
            return self.state.with_due({})
        groups = self.pruner.structure.groups(coupling, {name: parameters[name] for name in losing})
        wanted = [(groups[pool], mask.nonzero().squeeze(1)) for pool, mask in losing.items()]
        plan, refused = _of_rank_zero(trainer, lambda: self._plan(network, coupling, wanted))
        for name, reason in refused.items():
            warnings.warn(f"{name} keeps its channels: {reason}", stacklevel=2)
        stays = {pool: group for pool, group in groups.items() if group.name in refused}
        members = {member.name for group in stays.values() for member in group.members if member.dim == 0}
        return self.state.with_due(plan, frozenset(stays.keys() | members))

    def _plan(self, network: nn.Module, coupling: Coupling, wanted: list[Choice]) -> tuple[CutPlan, dict[str, str]]:
        done = shrink_channels(copy_model(network), coupling, wanted, self.example.args, self.example.kwargs)
        return done.plan, done.refused

    def enforce(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold masked weights at zero, here and in averaged copies, and zero their moments in the optimizers."""
        self.watch(trainer)
        self._masks.apply()
        for optimizer in trainer.optimizers:
            self._masks.zero_moments(optimizer)
        for twin in self.reshaper.twins(trainer, self.name):
            self._masks.apply_to_copy(twin)

    def watch(self, trainer: Trainer) -> None:
        """Mask again after each step of each optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            optimizer.register_step_post_hook(self._masks.enforcer(optimizer)) for optimizer in trainer.optimizers
        ]

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return what is masked, what is cut and what is due to be, as plain tensors and primitives."""
        return {**self.state.state_dict(), "masks": self._masks.state_dict(), "calls": self.observer.state_dict()}

    def load_state_dict(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, on a module that is cut as far as the state says, and no further."""
        reshard(pl_module)
        parameters = self.parameters(pl_module)
        self._masks.clear()
        self.state = PruningState.from_state_dict(state)
        if shard_group([*parameters.values()]) is None:
            self._masks.load(state["masks"], parameters)
        elif self.state.reached:
            # Each rank holds another part of the weights: the zeros say what was masked.
            self._masks.recover(state["masks"], parameters)
            mine = {name: local(parameters[name].detach()) != 0 for name in state["masks"]}
            self.state = self.state.after_mask(self.pruner.structure.entries(mine))

    def release(self) -> None:
        """Take every hook and patch off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.example.release()
        self.observer.release()
        self.reshaper.release()


def _summed(counts: tuple[int, ...], group: ProcessGroup | None) -> tuple[int, ...]:
    """Counts of all ranks that hold parts of the weights."""
    if group is None:
        return counts
    device = torch.device("cpu" if distributed.get_backend(group) == "gloo" else "cuda")
    total = torch.tensor(counts, device=device)
    distributed.all_reduce(total, group=group)
    return tuple(total.tolist())


def _of_rank_zero(
    trainer: Trainer, plan: Callable[[], tuple[CutPlan, dict[str, str]]]
) -> tuple[CutPlan, dict[str, str]]:
    """A verified plan and what it refuses: batches differ between ranks, and so might what can be verified."""
    found: tuple[CutPlan, dict[str, str], str] = ({}, {}, "")
    if trainer.is_global_zero:
        try:
            found = (*plan(), "")
        except ShrinkError as error:  # raised on every rank: one alone would leave the others waiting
            found = ({}, {}, str(error))
    due, refused, reason = trainer.strategy.broadcast(found)
    if reason:
        raise ShrinkError(reason)
    return dict(due), refused
