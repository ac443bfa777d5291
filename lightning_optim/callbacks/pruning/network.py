"""Network under pruning: its state, its masks, its cuts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.hooks import RemovableHandle

from lightning_optim.callbacks.pruning.full_size import warn_of_full_size
from lightning_optim.callbacks.pruning.network_calls import NetworkCalls
from lightning_optim.callbacks.pruning.ranks import of_rank_zero, summed
from lightning_optim.callbacks.trainer.lightning_private import compiler_of
from lightning_optim.callbacks.trainer.reshape import Reshaper
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind
from lightning_optim.errors import CaptureError, ShrinkError, reason_of
from lightning_optim.graph.capture import capture_network
from lightning_optim.graph.coupling import Coupling, Group, couple
from lightning_optim.pruning.masks import Masks
from lightning_optim.pruning.pruner import Pruner
from lightning_optim.pruning.shrink.branches import plan_bypass
from lightning_optim.pruning.shrink.channels import Choice, shrink_channels
from lightning_optim.pruning.shrink.masking import plan_masking
from lightning_optim.pruning.state import PruningState
from lightning_optim.surgery.compilation import compile_anew
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import CutPlan
from lightning_optim.surgery.layer_kinds import LAYERS, turned
from lightning_optim.surgery.masked_norm import MaskedNorm, mask_norms, whole_norms
from lightning_optim.surgery.output_layers import output_layers
from lightning_optim.surgery.parametrized import keep_directions, weight_names
from lightning_optim.surgery.select import named_modules, plain_name, submodule
from lightning_optim.surgery.shard import local, reshard, shard_group
from lightning_optim.surgery.torch_private import uncompiled


class Follower(Protocol):
    """Holder of tensors that have the network's shapes, and must be cut with them."""

    def cut(self, plan: CutPlan, *prefixes: str) -> None:
        """Follow a cut: ``plan`` names tensors that lie below each of the prefixes in the LightningModule."""


@final
class PrunedNetwork:
    """Masks and cuts of one network, and whatever must follow them: optimizers, averaged copies, snapshots.

    Args:
        pruner: Decides what is pruned.

    Attributes:
        name: Plain name of the network in the LightningModule.
        pruner: Decides what is pruned; by rows of layers, once the coupling cannot be known.
        state: What is pruned.
        key: Tells the masks of this network from those of others, which may share layers with it.
        calls: Tells how the training step calls the network, and with what.
        reshaper: Removes channels, and brings a fresh module to a checkpoint's shape.
        followers: Holders of tensors that are cut with the network.
        masks: What is masked, of this rank's part of every weight.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.name = ""
        self.pruner = pruner
        self.state = PruningState()
        self.key = ""
        self.calls = NetworkCalls(needs_inputs=pruner.structure.needs_coupling)
        self.reshaper = Reshaper()
        self.followers: list[Follower] = []
        self.masks = Masks()
        self._is_uncapturable = False
        self._compiled: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})  # for which norms, and for which cut
        self._hooks: list[RemovableHandle] = []

    def live(self, pl_module: LightningModule) -> nn.Module:
        """The network itself, below any wrapper of ``torch.compile``."""
        network = submodule(pl_module, self.name)
        return uncompiled(network)

    def watch_calls(self, pl_module: LightningModule) -> None:
        """Watch how the training step calls the network, and with what."""
        network = self.live(pl_module)
        self.reshaper.check_copies(network)
        self.calls.watch(pl_module, network)

    def as_called(self, pl_module: LightningModule) -> nn.Module:
        """The network as the training step calls it: itself, or its parts as one module."""
        return self.calls.as_called(self.live(pl_module))

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
            return couple(
                capture_network(self.as_called(pl_module), self.calls.example.args, self.calls.example.kwargs)
            )
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
        spared = output_layers(network, layers, self.calls.example.args, self.calls.example.kwargs)
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
            self.masks.zero_moments(optimizer)
        for name, mask in keep.items():
            self.masks.set(name, parameters[name], mask)
        self.state = self.state.after_mask({**self.state.alive, **turned(self.live(pl_module), keep)})
        self.enforce(trainer, pl_module)

    def note_sparsity(self, sparsity: float, layers: Iterable[str], group: ProcessGroup | None) -> None:
        """Note a finished pruning step.

        Args:
            sparsity: What was asked for.
            layers: Names of the layers that it looked at.
            group: Process group over which the weights are sharded.
        """
        left, total = summed(self.state.count_left(), group)
        measured = (total - left) / total if total else 0.0
        self.state = dataclasses.replace(self.state, reached=sparsity, measured=measured, decided=tuple(layers))

    def num_parameters(self, pl_module: LightningModule, group: ProcessGroup | None) -> int:
        """Number of the network's parameters that are left, without those that are masked; shared ones count once."""
        (masked,) = summed((self.masks.num_masked(),), group)
        return sum(parameter.numel() for parameter in self.parameters(pl_module).values()) - masked

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
            self.mask(trainer, pl_module, coupling, keep)
        elif may_go_back:
            self.mask_before_shrink(trainer, pl_module, coupling, keep)
        elif shrink == "update" or is_final:
            self.shrink(trainer, pl_module, coupling, keep)
        else:
            self.mask(trainer, pl_module, coupling, keep)

    def _with_frozen(self, pl_module: LightningModule, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters = self.parameters(pl_module)
        frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
        held = {pool: mask for pool, mask in self.state.alive.items() if pool in frozen - self.state.refused}
        return {**held, **keep}

    def mask(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling | None, keep: Mapping[str, Tensor]
    ) -> None:
        """Zero what is not kept, and hold it at zero; channels that no mask takes out stay."""
        norms = self._plan_norms(trainer, pl_module, coupling, keep)
        keep = self._without_refused(keep)
        parameters = self.parameters(pl_module)
        live = self.live(pl_module)
        weights = turned(live, {name: local(parameter.detach()) for name, parameter in parameters.items()})
        self.masks.clear()
        masks = turned(live, self.pruner.masks(self.state, keep, weights, coupling))
        for name, mask in keep_directions(live, masks).items():
            self.masks.set(name, parameters[name], mask)
        self.state = self.state.after_mask(keep, norms)
        self.masks.apply()

    def _plan_norms(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling | None, keep: Mapping[str, Tensor]
    ) -> dict[str, MaskedNorm]:
        """Layers that must leave masked channels out; a warning names the channels that must stay."""
        if coupling is None or self.pruner.structure.gone_branches(keep, coupling) is not None:
            return {}  # a branch is masked with its norms
        groups, choices = self._choices(pl_module, coupling, keep)
        network, example = self.as_called(pl_module), self.calls.example
        norms, refused = of_rank_zero(
            trainer, lambda: plan_masking(network, coupling, choices, example.args, example.kwargs)
        )
        advice = "remove them at once (structure.shrink='update', without until), or exclude them"
        self.state = self.state.with_due(self.state.due, self._refuse(groups, refused, advice))
        if norms and not self.state.norms and self.pruner.structure.shrink == "never":
            warnings.warn(
                f"{', '.join(norms)} take a statistic over channels, and leave masked ones out as long as this module "
                "lives; a plain load of its checkpoints would not: read them with lightning_optim.pruning.load_pruned, "
                "or remove the channels (structure.shrink='end')",
                stacklevel=2,
            )
        return norms

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
            self.masks.clear()
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
        self.mask(trainer, pl_module, coupling, self._without_refused(keep))

    def _without_refused(self, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {pool: mask for pool, mask in keep.items() if pool not in self.state.refused}

    def cut_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is due to be removed; a second call does nothing."""
        if not self.state.due:
            return
        self._mask_norms(trainer, {})
        sizes = self.reshaper.cut(trainer, pl_module, self.name, self.state.due)
        for follower in self.followers:
            follower.cut(self.state.due, *self.reshaper.prefixes(pl_module, self.name))
        self.state = self.state.after_cut(sizes)
        self.masks.follow(self.parameters(pl_module))
        self.watch(trainer)

    def _with_due(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling, keep: Mapping[str, Tensor]
    ) -> PruningState:
        """The state with the cut that removes what is not kept; a warning names what the cut must leave."""
        network, example = self.as_called(pl_module), self.calls.example
        gone = self.pruner.structure.gone_branches(keep, coupling)
        if gone is not None:
            plan, refused = of_rank_zero(trainer, lambda: plan_bypass(network, gone, example.args, example.kwargs))
            for name, reason in refused.items():
                warnings.warn(f"the branch of {name} stays, masked: {reason}", stacklevel=2)
            return self.state.with_due(plan)
        groups, wanted = self._choices(pl_module, coupling, keep)
        if not wanted:
            return self.state.with_due({})
        plan, refused = of_rank_zero(trainer, lambda: self._plan(network, coupling, wanted))
        return self.state.with_due(plan, self._refuse(groups, refused))

    def _choices(
        self, pl_module: LightningModule, coupling: Coupling, keep: Mapping[str, Tensor]
    ) -> tuple[dict[str, Group], list[Choice]]:
        """Groups that lose channels, by pool, and what stays of each."""
        parameters = self.parameters(pl_module)
        losing = {pool: mask for pool, mask in self.state.of_present(keep).items() if not mask.all()}
        if not losing:
            return {}, []
        groups = self.pruner.structure.groups(coupling, {name: parameters[name] for name in losing})
        return groups, [(groups[pool], mask.nonzero().squeeze(1)) for pool, mask in losing.items()]

    @staticmethod
    def _refuse(groups: Mapping[str, Group], refused: Mapping[str, str], advice: str = "") -> frozenset[str]:
        """Weights and pools of the groups that keep their channels, after a warning that says why."""
        for name, reason in refused.items():
            warnings.warn(f"{name} keeps its channels: {reason}" + (advice and f"; {advice}"), stacklevel=2)
        stays = {pool: group for pool, group in groups.items() if group.name in refused}
        return frozenset(stays) | {m.name for group in stays.values() for m in group.members if m.role == 0}

    def _plan(self, network: nn.Module, coupling: Coupling, wanted: list[Choice]) -> tuple[CutPlan, dict[str, str]]:
        done = shrink_channels(
            copy_model(network), coupling, wanted, self.calls.example.args, self.calls.example.kwargs
        )
        return done.plan, done.refused

    def enforce(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold masked weights at zero, here and in averaged copies, and zero their moments in the optimizers."""
        self.watch(trainer)
        self.masks.apply()
        for optimizer in trainer.optimizers:
            self.masks.zero_moments(optimizer)
        for twin in self.reshaper.twins(trainer, self.name):
            self.masks.apply_to_copy(twin)

    def hold(self) -> None:
        """Hold masked weights at zero that something else than an optimizer of the trainer may have moved."""
        self.masks.apply()

    def watch(self, trainer: Trainer) -> None:
        """Mask again after each step of each optimizer, and let layers leave masked channels out."""
        if strategy_kind(trainer) is not StrategyKind.SHARDED:
            self.masks.rebind(self.parameters(trainer.lightning_module))
        self._mask_norms(trainer, self.state.norms)
        shape = (self.state.norms, self.state.cut)
        if any(new is not old and (new or old) for new, old in zip(shape, self._compiled, strict=True)):
            compile_anew(trainer.lightning_module, compiler_of(trainer.lightning_module))
        self._compiled = shape
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            optimizer.register_step_post_hook(self.masks.enforcer(optimizer)) for optimizer in trainer.optimizers
        ]

    def _mask_norms(self, trainer: Trainer, norms: Mapping[str, MaskedNorm]) -> None:
        for network in (self.live(trainer.lightning_module), *self.reshaper.twins(trainer, self.name)):
            mask_norms(network, norms, self.key)

    @contextmanager
    def deciding(self, trainer: Trainer) -> Iterator[None]:
        """Show the network as it is written, without masked norms, while a pruning step looks at it and changes it."""
        with whole_norms(self.live(trainer.lightning_module)):
            yield
        self._mask_norms(trainer, self.state.norms)

    def explain(self, pl_module: LightningModule, error: str) -> None:
        """Say what may have made a fit fail over a size: what the module still holds at full size."""
        warn_of_full_size(pl_module, self.name, self.state.cut, error)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return what is masked, what is cut and what is due to be, as plain tensors and primitives."""
        return {**self.state.state_dict(), "masks": self.masks.state_dict()}

    def load_state_dict(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, on a module that is cut as far as the state says, and no further."""
        reshard(pl_module)
        parameters = self.parameters(pl_module)
        self.masks.clear()
        self.state = PruningState.from_state_dict(state)
        if shard_group([*parameters.values()]) is None:
            self.masks.load(state["masks"], parameters)
        elif self.state.reached:
            # Each rank holds another part of the weights: the zeros say what was masked.
            self.masks.recover(state["masks"], parameters)
            mine = {name: local(parameters[name].detach()) != 0 for name in state["masks"]}
            self.state = self.state.after_mask(self.pruner.structure.entries(turned(self.live(pl_module), mine)))

    def release(self) -> None:
        """Take every hook and patch off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.calls.release()
        self.reshaper.release()
