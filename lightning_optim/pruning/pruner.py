"""One pruning step: evidence in, what is kept out; and the memory of what has gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, distributed

from lightning_optim.cost.prices import Prices, prices_from_state
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph.branches import Branch
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.pruning.allocation.base import Allocation
from lightning_optim.pruning.allocation.priced import PricedAllocation
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Statistic
from lightning_optim.pruning.masks import pack, unpack
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.channel import Channel
from lightning_optim.pruning.structure.coupled import CoupledStructure
from lightning_optim.pruning.structure.neuron import Neuron


@final
class Pruner:
    """Decides what goes at each step of a schedule; what has gone does not come back while the sparsity grows.

    A pool's memory has its original size: sparsity stays absolute when channels are physically removed between steps.
    """

    def __init__(self, criterion: Criterion, structure: Structure, allocation: Allocation | PricedAllocation) -> None:
        self._criterion, self._structure, self._setting = criterion, structure, allocation
        if isinstance(allocation, PricedAllocation) and not isinstance(structure, Channel):
            raise ValueError(
                f"{type(allocation).__name__!r} allocates whole channels, got {type(structure).__name__!r}: "
                "choose the structure 'Channel', or an allocation that counts weights"
            )
        self._allocation = allocation if isinstance(allocation, Allocation) else None
        self._prices: tuple[Prices, float] | None = None
        self._alive: dict[str, Tensor] = {}
        self._present: dict[str, Tensor] = {}

    @property
    def wants_prices(self) -> bool:
        """Whether ``learn_prices`` must come before the next decision."""
        return self._allocation is None

    def learn_prices(self, prices: Prices, highest: float) -> None:
        """Take in what the original network costs.

        Args:
            prices: Of the pools as they are now; kept for every later decision.
            highest: Largest value that the schedule will reach.

        Raises:
            ValueError: If that cannot be reached.
        """
        assert isinstance(self._setting, PricedAllocation)
        assert isinstance(self._structure, Channel)
        self._allocation = self._setting.start(prices, multiple=self._structure.multiple, highest=highest)
        self._prices = prices, highest

    def channels_at(
        self, prices: Prices, sparsity: float, seen: Mapping[str, LayerEvidence], coupling: Coupling
    ) -> dict[str, int] | None:
        """How many channels of each pool would be left at some prices; ``None`` where ``decide`` would refuse."""
        assert isinstance(self._setting, PricedAllocation)
        assert isinstance(self._structure, Channel)
        try:
            allocation = self._setting.start(prices, multiple=self._structure.multiple, highest=sparsity)
            keep = self._chosen(allocation, sparsity, seen, coupling, group=None)
        except ValueError:
            return None
        return {pool: int(mask.sum()) for pool, mask in keep.items()}

    def decide_by_neuron(self) -> None:
        """Go on with rows of layers in place of coupled channels, where the coupling cannot be known.

        Raises:
            ShrinkError: If a criterion or an allocation cannot do without it.
        """
        by_readers = [
            need for need in self._criterion.needs if isinstance(need, Statistic) and need.of is Evidence.OUTPUT
        ]
        if self._allocation is None or by_readers:
            what = type(self._setting if self._allocation is None else self._criterion).__name__
            raise ShrinkError(
                f"{what!r} must know what reads a channel; choose another, or mask with structure 'Neuron'"
            )
        self._structure = Neuron()

    def decide(
        self,
        sparsity: float,
        seen: Mapping[str, LayerEvidence],
        coupling: Coupling | None = None,
        group: distributed.ProcessGroup | None = None,
    ) -> dict[str, Tensor]:
        """Choose what is kept, without remembering it yet.

        Args:
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
        assert self._allocation is not None
        return self._chosen(self._allocation, sparsity, seen, coupling, group)

    def _chosen(
        self,
        allocation: Allocation,
        sparsity: float,
        seen: Mapping[str, LayerEvidence],
        coupling: Coupling | None,
        group: distributed.ProcessGroup | None,
    ) -> dict[str, Tensor]:
        weights = {name: layer.weight for name, layer in seen.items()}
        scores = {name: self._criterion(layer) for name, layer in seen.items()}
        _check_numbers(scores, group)
        full = self._offered(weights, scores, coupling)
        return self._structure.settle(allocation(full, sparsity, group), full)

    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None = None
    ) -> dict[str, Tensor]:
        """Masks over ``weights`` as they are now, for a decision."""
        return self._structure.masks(self.kept_of_present(keep), weights, coupling)

    def groups(self, coupling: Coupling, weights: Mapping[str, Tensor]) -> dict[str, Group]:
        """The coupled channels of each pool, which is named after one of ``weights``."""
        assert isinstance(self._structure, CoupledStructure)
        return self._structure.groups(coupling, weights)

    def gone_branches(self, keep: Mapping[str, Tensor], coupling: Coupling) -> list[Branch] | None:
        """The residual branches that a decision removes; ``None`` where it removes channels."""
        return self._structure.gone_branches(keep, coupling)

    def kept_of_present(self, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A decision, restricted to what is still physically there."""
        return {pool: mask[self._present[pool]] if pool in self._present else mask for pool, mask in keep.items()}

    @property
    def alive(self) -> dict[str, Tensor]:
        """The decision remembered last."""
        return dict(self._alive)

    def remember(self, keep: Mapping[str, Tensor]) -> None:
        """Take a decision as carried out by masking."""
        self._alive = {pool: mask.clone() for pool, mask in keep.items()}

    def remember_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Take a decision as carried out by masks over this rank's part of the weights."""
        self.remember(self._structure.entries(masks))

    def remember_removed(self, keep: Mapping[str, Tensor]) -> None:
        """Take a decision as carried out physically: what was not kept is no longer there."""
        self.remember(keep)
        self._present = {pool: mask.clone() for pool, mask in keep.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is alive and what is there, as bits, and what it cost at first."""
        prices = None if self._prices is None else [self._prices[0].state_dict(), self._prices[1]]
        return {"alive": _packed(self._alive), "present": _packed(self._present), "prices": prices}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._alive, self._present = _unpacked(state["alive"]), _unpacked(state["present"])
        if state["prices"] is not None:
            self.learn_prices(prices_from_state(state["prices"][0]), state["prices"][1])

    def _offered(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        """Scores of all original entries by pool.

        A pool that is down to one entry is no axis any more, and the structure does not find it: it stays, and counts.
        """
        counts = isinstance(self._setting, Allocation)  # a priced one goes by what can still change
        last = {pool: present for pool, present in self._present.items() if counts and int(present.sum()) == 1}
        try:
            pools = self._structure.pools(weights, scores, coupling)
        except TargetError:
            if not last:
                raise
            pools = {}
        found = {pool: self._full(pool, score) for pool, score in pools.items()}
        device = next((weight.device for weight in weights.values()), None)
        for pool, present in last.items():
            if pool not in found:
                stays = torch.full(present.shape, torch.inf, device=device)
                found[pool] = stays.masked_fill(~present.to(stays.device), -torch.inf)
        return found

    def _full(self, pool: str, score: Tensor) -> Tensor:
        present = self._present.get(pool)
        full = score
        if present is not None:
            present = present.to(score.device)
            full = score.new_full(present.shape, -torch.inf).masked_scatter(present, score)
        alive = self._alive.get(pool)
        return full if alive is None else full.masked_fill(~alive.to(full.device), -torch.inf)


def _check_numbers(scores: Mapping[str, Tensor], group: distributed.ProcessGroup | None) -> None:
    if group is not None:
        return  # another rank may have the NaN: the allocation finds it on all of them
    odd = [name for name, score in scores.items() if score.isnan().any()]
    if odd:
        more = f" and of {len(odd) - 1} other layers" if len(odd) > 1 else ""
        raise ValueError(f"scores of {odd[0]}{more} are NaN; did training diverge?")


def _packed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: {"bits": pack(mask), "shape": list(mask.shape)} for name, mask in masks.items()}


def _unpacked(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: unpack(entry["bits"], entry["shape"]) for name, entry in state.items()}
