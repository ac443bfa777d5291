"""Pruning decision: evidence and the state so far in, what is kept out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, distributed

from lightning_optim.cost.base import Cost
from lightning_optim.cost.prices import Prices
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.allocation.base import Allocation, AllocationSetting
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Statistic
from lightning_optim.pruning.state import PruningState
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.functional import allocate_jointly
from lightning_optim.pruning.structure.neuron import Neuron


@final
@dataclass(frozen=True, slots=True)
class Pruner:
    """Pruning decision at each step of a schedule; what has gone does not come back while the sparsity grows.

    It remembers nothing: what has gone stands in a ``PruningState``.

    Args:
        criterion: How important a weight is.
        structure: What falls together.
        allocation: How the sparsity is spread over layers.

    Raises:
        ValueError: If the allocation counts whole channels, and the structure has none.
    """

    criterion: Criterion
    structure: Structure
    allocation: AllocationSetting

    def __post_init__(self) -> None:
        if self.cost is not None and self.structure.channel_multiple is None:
            raise ValueError(
                f"{type(self.allocation).__name__!r} allocates whole channels, got {type(self.structure).__name__!r}: "
                "choose the structure 'Channel', or an allocation that counts weights"
            )

    @property
    def cost(self) -> Cost | None:
        """What a network must be priced by before the first decision; ``None`` if nothing is priced."""
        return self.allocation.priced_by()

    def priced(self, state: PruningState, prices: Prices, highest: float) -> PruningState:
        """Take in what the original network costs, for every later decision.

        Args:
            state: The state so far.
            prices: Prices of the pools as they are now.
            highest: Largest value that the schedule will reach.

        Raises:
            ValueError: If that cannot be reached.
        """
        self._start(prices, highest)
        return replace(state, prices=(prices, highest))

    def channels_at(
        self,
        prices: Prices,
        state: PruningState,
        sparsity: float,
        seen: Mapping[str, LayerEvidence],
        coupling: Coupling,
    ) -> dict[str, int] | None:
        """How many channels of each pool would be left at some prices; ``None`` where ``decide`` would refuse."""
        try:
            keep = self.decide(replace(state, prices=(prices, sparsity)), sparsity, seen, coupling)
        except ValueError:
            return None
        return {pool: int(mask.sum()) for pool, mask in keep.items()}

    def by_neuron(self) -> Pruner:
        """The pruner with rows of layers in place of coupled channels, where the coupling cannot be known.

        Raises:
            ShrinkError: If the structure, the criterion or the allocation needs the coupling: rows of layers are
                channels, but neither heads nor branches.
        """
        if self.structure.channel_multiple is None:  # it removes no single channels
            raise ShrinkError(
                f"without it {type(self.structure).__name__!r} finds nothing to prune; choose structure 'Neuron', "
                "which masks rows of each layer, or single weights"
            )
        by_readers = [
            need for need in self.criterion.needs if isinstance(need, Statistic) and need.of is Evidence.OUTPUT
        ]
        if self.cost is not None or by_readers:
            what = type(self.criterion if self.cost is None else self.allocation).__name__
            raise ShrinkError(
                f"{what!r} must know what reads a channel; choose another, or mask with structure 'Neuron'"
            )
        return replace(self, structure=Neuron())

    def decide(
        self,
        state: PruningState,
        sparsity: float,
        seen: Mapping[str, LayerEvidence],
        coupling: Coupling | None = None,
        group: distributed.ProcessGroup | None = None,
    ) -> dict[str, Tensor]:
        """Choose what is kept.

        Args:
            state: What has gone so far.
            sparsity: Fraction of each pool's, or of all, original entries that shall be gone; of the original cost
                where the allocation is priced.
            seen: Evidence on every targeted layer, by the name of its weight.
            coupling: Coupled channels of the network as it is now.
            group: Process group over which the weights are sharded.

        Returns:
            By pool, a boolean mask over the pool's original entries.

        Raises:
            ValueError: If a score is NaN.
        """
        weights = {name: layer.weight for name, layer in seen.items()}
        scores = {name: self.criterion(layer) for name, layer in seen.items()}
        _check_numbers(scores, group)
        full = self._offered(state, weights, scores, coupling)
        prices, highest = state.prices or (None, sparsity)
        allocation = self._start(prices, highest)
        keep = allocate_jointly(full, self.structure.competing(full), lambda joint: allocation(joint, sparsity, group))
        return self.structure.fitted(keep, full)

    def masks(
        self,
        state: PruningState,
        keep: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        coupling: Coupling | None = None,
    ) -> dict[str, Tensor]:
        """Masks over ``weights`` as they are now, for a decision."""
        return self.structure.masks(state.of_present(keep), weights, coupling)

    def _start(self, prices: Prices | None, highest: float) -> Allocation:
        return self.allocation.start(prices, multiple=self.structure.channel_multiple or 1, highest=highest)

    def _offered(
        self,
        state: PruningState,
        weights: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        coupling: Coupling | None,
    ) -> dict[str, Tensor]:
        """Scores of all original entries by pool.

        A pool that is down to one entry is no axis any more, and the structure does not find it: it stays, and counts.
        """
        counts = self.cost is None  # a priced allocation goes by what can still change
        last = {pool: present for pool, present in state.present.items() if counts and int(present.sum()) == 1}
        try:
            pools = self.structure.pools(weights, scores, coupling)
        except TargetError:
            if not last:
                raise
            pools = {}
        found = {pool: _full(state, pool, score) for pool, score in pools.items()}
        device = next((weight.device for weight in weights.values()), None)
        for pool, present in last.items():
            if pool not in found:
                stays = torch.full(present.shape, torch.inf, device=device)
                found[pool] = stays.masked_fill(~present.to(stays.device), -torch.inf)
        return found


def _full(state: PruningState, pool: str, score: Tensor) -> Tensor:
    """Scores over a pool's original entries: ``-inf`` for what has gone."""
    present = state.present.get(pool)
    full = score
    if present is not None:
        present = present.to(score.device)
        full = score.new_full(present.shape, -torch.inf).masked_scatter(present, score)
    alive = state.alive.get(pool)
    return full if alive is None else full.masked_fill(~alive.to(full.device), -torch.inf)


def _check_numbers(scores: Mapping[str, Tensor], group: distributed.ProcessGroup | None) -> None:
    if group is not None:
        return  # another rank may have the NaN: the allocation finds it on all of them
    odd = [name for name, score in scores.items() if score.isnan().any()]
    if odd:
        more = f" and of {len(odd) - 1} other layers" if len(odd) > 1 else ""
        raise ValueError(f"scores of {odd[0]}{more} are NaN; did training diverge?")
