"""Conflicts of several pruning callbacks in one Trainer: where one removes channels, no other may keep old shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, final

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_optim.errors import ShrinkError
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, Statistic
from lightning_optim.pruning.rewind import Rewind
from lightning_optim.pruning.structure.base import Structure, TouchedDim
from lightning_optim.pruning.until.metric_drop import MetricDrop
from lightning_optim.surgery.parametrized import weight_names
from lightning_optim.surgery.select import find_network


class Pruning(Protocol):
    """Settings of a pruning callback, and the layers that they choose."""

    criterion: Criterion
    structure: Structure
    until: MetricDrop | None
    rewind: Rewind | None
    network: str | None

    def layers(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Targeted layers by their name in the network."""


@final
class PrunerConflicts:
    """Conflicts of pruning callbacks: refuses settings that would leave one with shapes from before another one's cut.

    Masks are of a shape, and cuts are recorded one callback at a time: a resumed fit would cut in another order. So
    where one callback removes channels, no other may touch the same dimension of the tensors that it cuts, nor hold
    anything of their shape. Callbacks that only mask may share layers.
    """

    def __init__(self, me: Pruning) -> None:
        self._me = me
        self._is_checked = False

    def check_targets(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare targets and settings before the first step of a fit, once every callback knows its network.

        Raises:
            ShrinkError: If a layer that one callback shrinks is another one's target, or is held for going back.
        """
        self._is_checked = False
        mine = {id(layer): name for name, layer in self._me.layers(pl_module).items()}
        for other in self._others(trainer):
            for one, held in ((self._me, other), (other, self._me)):
                if one.structure.shrink != "never" and (held.until or held.rewind) is not None:
                    raise ShrinkError(
                        "one PruningScheduler shrinks the network while another one holds earlier states of it (until, "
                        "rewind): use one of the two, or structure.shrink='never'"
                    )
            shared = [mine[id(layer)] for layer in other.layers(pl_module).values() if id(layer) in mine]
            if shared:
                raise ShrinkError(_refusal(shared))

    def check_coupling(
        self, trainer: Trainer, pl_module: LightningModule, coupling: Coupling, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Compare the coupled channels, before the first cut of a fit.

        Raises:
            ShrinkError: If a tensor is cut by one callback and touched by another.
        """
        if self._is_checked or self._me.structure.shrink == "never":
            return
        mine = self._touched(self._me, pl_module, coupling, parameters)
        for other in self._others(trainer):
            shared = _shared(mine, self._touched(other, pl_module, coupling, parameters))
            if shared:
                raise ShrinkError(_refusal(shared))
        self._is_checked = True

    def _touched(
        self, one: Pruning, pl_module: LightningModule, coupling: Coupling, parameters: Mapping[str, nn.Parameter]
    ) -> set[TouchedDim]:
        mine, others = (find_network(pl_module, each.network, needs_forward=False) for each in (self._me, one))
        if mine != others:
            return set()
        weights = {name: parameters[name] for name in weight_names(one.layers(pl_module))}
        places = one.structure.touched(weights, coupling)
        if any(isinstance(need, Statistic) and need.of is Evidence.GRADIENT for need in one.criterion.needs):
            places |= {(name, None) for name in weights}  # what is gathered has the shape of the weights
        return places

    def _others(self, trainer: Trainer) -> list[Pruning]:
        """The other callbacks of this kind, where one of the two shrinks."""
        shrinks = self._me.structure.shrink != "never"
        callbacks: Iterable[Pruning] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
        return [
            other
            for other in callbacks
            if type(other) is type(self._me)
            and other is not self._me
            and (shrinks or other.structure.shrink != "never")
        ]


def _shared(mine: set[TouchedDim], others: set[TouchedDim]) -> list[str]:
    """Tensors of which both need the same dimension, or one needs the whole."""
    pairs = ((name, dim, other) for name, dim in mine for same, other in others if name == same)
    return sorted({name for name, dim, other in pairs if dim == other or dim is None or other is None})


def _refusal(shared: list[str]) -> str:
    more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
    return (
        f"two PruningSchedulers prune {shared[0]!r}{more}, and one of them removes channels there: exclude it, and "
        "what is coupled to it, in the targets of one; or use one callback, or structure.shrink='never' in both"
    )
