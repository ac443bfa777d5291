"""Layers that a pruning callback prunes."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import LightningModule
from torch import nn

from lightning_optim.callbacks.pruning.evidence import LAYERS
from lightning_optim.errors import TargetError
from lightning_optim.surgery.parametrized import pruned_weight
from lightning_optim.surgery.select import Targets


def targeted_layers(pl_module: LightningModule, targets: Targets, network: str) -> dict[str, nn.Module]:
    """Return the targeted layers by their name in the network, without those that are frozen or share another's weight.

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
        if name.startswith(prefix) and weight.requires_grad and id(weight) not in weights | others:
            weights.add(id(weight))
            layers[name[len(prefix) :]] = module
    if not layers:
        raise TargetError(_refusal(chosen, network))
    return layers


def _refusal(chosen: dict[str, nn.Module], network: str) -> str:
    if network in chosen:
        holder = network.rpartition(".")[0]
        return (
            f"network={network!r} is a single {type(chosen[network]).__name__}: set network={holder!r}, which holds "
            f"it, and targets.include=[{network!r}]"
        )
    return f"all {len(chosen)} targeted layers are frozen, tied or outside {network!r}: {', '.join(list(chosen)[:5])}"


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)
