"""Prices of a network, decided once for all ranks."""

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
    seen: Mapping[str, LayerEvidence],
    coupling: Coupling,
    *,
    end: float,
    is_sharded: bool,
) -> None:
    """Let a budget know what the original network costs.

    Args:
        trainer: Its strategy broadcasts.
        pl_module: The module that holds the network.
        pruned: The network as it is now.
        seen: Evidence on every targeted layer.
        coupling: The network's coupled channels.
        end: Where the schedule ends.
        is_sharded: Whether each rank holds a part of every weight.
    """
    cost = pruned.pruner.cost
    assert cost is not None
    weights = {name: layer.weight for name, layer in seen.items()}
    choose = partial(pruned.pruner.channels_at, state=pruned.state, sparsity=end, seen=seen, coupling=coupling)
    network, chosen = pruned.as_called(pl_module), None if is_sharded else choose
    prices = agreed_prices(trainer, cost, network, coupling, weights, pruned.example, chosen)
    pruned.state = pruned.pruner.priced(pruned.state, prices, end)
