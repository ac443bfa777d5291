"""Prices of a network, decided once for all ranks and all steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_optim.callbacks.pruning.network import PrunedNetwork
from lightning_optim.cost.base import Cost, Subject
from lightning_optim.cost.prices import Channels, Prices
from lightning_optim.errors import LightningOptimError, ShrinkError
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.evidence import LayerEvidence
from lightning_optim.pruning.structure.coupled import targeted_groups
from lightning_optim.surgery.example import ExampleInputs
from lightning_optim.surgery.shard import shard_group


def agreed_prices(
    trainer: Trainer,
    cost: Cost,
    network: nn.Module,
    coupling: Coupling,
    weights: Mapping[str, Tensor],
    example: ExampleInputs,
    choose: Callable[[Prices], Channels | None] | None = None,
) -> Prices:
    """Price a network on rank 0, for every rank: two ranks would measure two latencies.

    Args:
        trainer: Its strategy broadcasts.
        cost: What is counted.
        network: The network as it is now.
        coupling: Its coupled channels.
        weights: The targeted weights; the groups of their channels are the pools.
        example: What the network takes.
        choose: Which channels would be left at some prices; asked on rank 0 alone.

    Raises:
        ShrinkError: If the network cannot be priced; on every rank.
    """
    found: tuple[Prices | None, str] = (None, "")
    cause: Exception | None = None
    if trainer.is_global_zero:
        try:
            pools = targeted_groups(coupling, weights)
            found = cost.prices(Subject(network, coupling, pools, example.args, example.kwargs, choose)), ""
        except Exception as error:  # whatever it is: one rank that raises alone would leave the others waiting
            found = None, str(error) if isinstance(error, LightningOptimError) else f"{type(error).__name__}: {error}"
            cause = error
    prices, problem = trainer.strategy.broadcast(found)
    if prices is None:
        raise ShrinkError(problem) from cause
    return prices


def price(
    trainer: Trainer,
    pl_module: LightningModule,
    pruned: PrunedNetwork,
    coupling: Coupling,
    *,
    seen: Mapping[str, LayerEvidence],
    targets: Mapping[str, Tensor],
    end: float,
) -> None:
    """Let a budget know what the original network costs, before its first decision; a collective call.

    Args:
        trainer: The trainer of this rank.
        pl_module: Its module.
        pruned: The network, whose state takes the prices.
        coupling: Its coupled channels.
        seen: Evidence of the layers that are pruned now.
        targets: The weights of all targeted layers, those that may be trained later too.
        end: Where the schedule ends.
    """
    cost = pruned.pruner.cost
    assert cost is not None
    names = [*seen, *(name for name in targets if name not in pruned.state.refused)]
    weights = {name: targets[name] for name in names if coupling.group_of(name, 0) is not None}
    choose = partial(pruned.pruner.channels_at, state=pruned.state, sparsity=end, seen=seen, coupling=coupling)
    is_sharded = shard_group([targets[name] for name in seen]) is not None
    network = pruned.as_called(pl_module)
    prices = agreed_prices(
        trainer, cost, network, coupling, weights, pruned.calls.example, None if is_sharded else choose
    )
    pruned.state = pruned.pruner.priced(pruned.state, prices, end)
