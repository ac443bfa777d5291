"""Layers that a pruning callback prunes: those that are trained, and those that are frozen and may be trained later."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_optim.callbacks.pruning.untreated import untreated_layers
from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.messages import tell
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind
from lightning_optim.errors import TargetError
from lightning_optim.surgery.layer_kinds import LAYERS, has_output_rows
from lightning_optim.surgery.parametrized import pruned_weight, weight_name
from lightning_optim.surgery.select import Targets, check_initialized, submodule


@final
class TargetedLayers:
    """Targeted layers of a fit. A frozen one joins as soon as it is trained; what was pruned stays when it is frozen.

    Args:
        targets: Layers to prune, by names relative to the LightningModule.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._layers: dict[str, nn.Module] = {}
        self._seen: tuple[object, ...] = ()
        self._names: set[str] = set()
        self._weights: dict[str, str | None] = {}
        self._is_waiting = False

    def trained(
        self, pl_module: LightningModule, network: str, pruned: Sequence[str] = (), *, keeps_frozen: bool = True
    ) -> dict[str, nn.Module]:
        """Return the layers that are trained, by their name in the network.

        Newcomers come last, so that what is coupled keeps its name.

        Args:
            pl_module: The LightningModule.
            network: Plain name of the network in it.
            pruned: Names of layers that were pruned already, in order.
            keeps_frozen: Whether these count though they are frozen now.

        Raises:
            TargetError: If one that was pruned has its weight under another name now.
        """
        check_initialized(submodule(pl_module, network), network)
        self._layers = targeted_layers(pl_module, self._targets, network)
        self._check_names(pruned)
        self._is_waiting = False
        now = [name for name, layer in self._layers.items() if _is_trained(layer)]
        kept = pruned if keeps_frozen else ()
        trained = {name: self._layers[name] for name in (*kept, *now) if name in self._layers}
        newcomers = trained.keys() - self._names
        if self._names and newcomers:
            tell(pl_module.trainer, f"{_some(newcomers)} trained from now on, and pruned with the others")
        self._names |= trained.keys()
        return trained

    def _check_names(self, pruned: Sequence[str]) -> None:
        before = self._weights
        self._weights = {name: weight_name(name, layer) for name, layer in self._layers.items()}
        moved = [name for name in pruned if name in before and self._weights.get(name, before[name]) != before[name]]
        if moved:
            raise TargetError(
                f"{_some(moved)} parametrized otherwise than when weights were pruned there: register or remove a "
                "parametrization before pruning begins, or once the fit is over"
            )

    def has_changed(self, trainer: Trainer) -> bool:
        """Whether other layers or weights are trained, or optimizers have other parameters, than when asked last."""
        groups = [(id(each), len(group["params"])) for each in trainer.optimizers for group in each.param_groups]
        is_sharded = strategy_kind(trainer) is StrategyKind.SHARDED  # another object stands for a gathered weight
        layers = self._layers.values()
        weights = [] if is_sharded else [(weight_name("", layer), id(pruned_weight(layer))) for layer in layers]
        before, self._seen = self._seen, (*groups, *weights, *map(_is_trained, layers))
        return before != self._seen

    @property
    def is_waiting(self) -> bool:
        """Whether nothing can be pruned until other layers are trained."""
        return self._is_waiting

    def wait(self, trainer: Trainer, sparsity: float, error: TargetError) -> None:
        """Wait where nothing can be pruned yet: for frozen layers, if something is known to unfreeze them later.

        Args:
            trainer: The trainer of this rank.
            sparsity: What is asked for.
            error: Why nothing can be pruned.

        Raises:
            TargetError: ``error``, with what to do, if there is nothing to wait for.
        """
        frozen = [name for name, layer in self._layers.items() if not _is_trained(layer)]
        if not frozen:
            raise error
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
        is_planned = any(is_instance_of(callback, "BaseFinetuning") for callback in callbacks)
        if sparsity and not is_planned:
            raise TargetError(
                f"{error}; {_some(frozen)} frozen: unfreeze before window.begin, or by a callback that derives from "
                "Lightning's BaseFinetuning, for which pruning waits"
            ) from error
        if sparsity:
            rank_zero_warn(
                f"nothing can be pruned yet, since {_some(frozen)} frozen: pruning waits until it is trained"
            )
        self._is_waiting = bool(sparsity)


def targeted_layers(pl_module: LightningModule, targets: Targets, network: str) -> dict[str, nn.Module]:
    """Return the targeted layers by their name in the network, without those that share another's weight.

    Of layers that share one weight the first stands for all, if all are targeted.

    Args:
        pl_module: The LightningModule.
        targets: Layers to prune, by names relative to it.
        network: Plain name of the network in it.

    Raises:
        TargetError: If none is left, or the weight of one is computed from what cannot be pruned in its place.
    """
    prefix = f"{network}." if network else ""
    chosen = targets.select(pl_module, LAYERS)
    layers: dict[str, nn.Module] = {}
    weights: set[int] = set()
    parts = {part for module in chosen.values() for part in module.modules()}
    others = {id(held) for module in pl_module.modules() if module not in parts for held in _own(module)}
    for name, module in chosen.items():
        weight = pruned_weight(module)
        if weight is None:
            raise TargetError(
                f"the weight or bias of {name!r} is computed by a parametrization that makes no zeros of zeros, so it "
                "cannot be pruned: leave it out in targets.exclude, or call "
                "torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
        if name.startswith(prefix) and id(weight) not in weights | others and has_output_rows(module):
            weights.add(id(weight))
            layers[name[len(prefix) :]] = module
    if not layers:
        raise TargetError(_refusal(pl_module, chosen, network))
    return layers


def _refusal(pl_module: LightningModule, chosen: dict[str, nn.Module], network: str) -> str:
    if network in chosen:
        holder = network.rpartition(".")[0]
        return (
            f"network={network!r} is a single {type(chosen[network]).__name__}: set network={holder!r}, which holds "
            f"it, and targets.include=[{network!r}]"
        )
    text = (
        f"all {len(chosen)} targeted layers are tied, transposed in groups or outside {network!r}: "
        f"{', '.join(list(chosen)[:5])}"
    )
    kinds = sorted({type(layer).__name__ for layer in untreated_layers(submodule(pl_module, network)).values()})
    return (
        f"{text}; of its other layers ({', '.join(kinds)}) none is a convolution or a linear layer" if kinds else text
    )


def _is_trained(layer: nn.Module) -> bool:
    weight = pruned_weight(layer)
    return weight is not None and weight.requires_grad


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, sorted(names)[:3])) + more + (" is" if len(names) == 1 else " are")
