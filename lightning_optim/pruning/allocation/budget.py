"""Budget allocation: the most important channels that a budget on cost can pay for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, distributed
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.base import Cost
from lightning_optim.cost.greedy import AllowedCounts, most_important
from lightning_optim.cost.macs import MACs
from lightning_optim.cost.prices import Prices
from lightning_optim.pruning.allocation.base import Allocation
from lightning_optim.pruning.allocation.priced import PricedAllocation
from lightning_optim.pruning.functional import drop_lowest


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(PricedAllocation):
    """Budget allocation: keeps what matters most for at most ``(1 - sparsity)`` of the original cost.

    The schedule's value is then the share of the *cost* to remove, not of the channels: at 0.6 of MACs the network
    keeps at most 40 % of its multiply-accumulates, wherever its channels go. The cost of a channel changes as its
    neighbours go, which is taken into account. Everything outside the targets counts, and stays.

    Channels are chosen for the largest product, over the weights that make or read channels, of the share of importance
    that is left. A layer passes on what reaches it, so the shares multiply; a sum would empty the most expensive layer
    first.

    Args:
        cost: What is counted: parameters, MACs, bytes or measured latency; MACs by default.
        min_kept: Share of its channels that every group keeps, in ``(0, 1]``.

    Raises:
        ValueError: If ``min_kept`` is out of range.

    Example:
        >>> from lightning_optim.cost.prices import Pool, Product, Width
        >>> terms = (Product("a", 9.0, (Width(0.0, {"a": 1.0}),)), Product("b", 1.0, (Width(0.0, {"b": 1.0}),)))
        >>> prices = Prices("MACs", {"a": Pool(2), "b": Pool(2)}, terms)
        >>> allocation = Budget().start(prices, multiple=1, highest=0.45)
        >>> allocation({"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([1.0, 1.0])}, 0.45)["a"]
        tensor([ True, False])
    """

    cost: Cost = MACs()  # noqa: RUF009  # frozen
    min_kept: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.min_kept <= 1.0:
            raise ValueError(f"min_kept must be in (0, 1], got {self.min_kept}")

    @override
    def start_priced(self, prices: Prices, *, multiple: int, highest: float) -> Allocation:
        allowed_counts = {pool: _allowed_counts(size, self.min_kept, multiple) for pool, size in prices.sizes.items()}
        allocation = _BudgetAllocation(prices, allowed_counts)
        allocation.check(highest, allowed_counts)
        return allocation


@final
@dataclass(frozen=True, slots=True)
class _BudgetAllocation(Allocation):
    """Budget allocation on one network, whose prices are known."""

    prices: Prices
    allowed_counts: Mapping[str, AllowedCounts]

    @override
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        self.check(sparsity, scores)
        importance = {pool: _survival(score, self.prices.pools[pool].uses) for pool, score in scores.items()}
        allowed_counts = {
            pool: [count for count in self.allowed_counts[pool] if count < len(importance[pool])] for pool in scores
        }
        for pool, kept in importance.items():  # what is alive may lie between two allowed counts
            if len(kept) - 1 not in allowed_counts[pool]:
                allowed_counts[pool].append(len(kept) - 1)
        channels = most_important(importance, allowed_counts, self.prices, self._limit(sparsity))
        return {pool: drop_lowest([score], score.numel() - channels[pool], group)[0] for pool, score in scores.items()}

    def check(self, sparsity: float, pools: Iterable[str]) -> None:
        """Refuse a budget that is below the floor, which is reached when each of ``pools`` keeps the least."""
        least = self.prices({pool: self.allowed_counts[pool][0] for pool in pools})
        if least > self._limit(sparsity):
            raise ValueError(
                f"a budget of {1.0 - sparsity:.3g} of the original {self.prices.unit} is below the floor of "
                f"{least / self.prices.full:.3g}, the cost of the layers that are frozen or no targets and of the "
                "least channels that each group keeps; lower the schedule's end, train and target more layers, or "
                "lower allocation.min_kept"
            )

    def _limit(self, sparsity: float) -> float:
        return (1.0 - sparsity) * self.prices.full * (1.0 + 1e-12)  # a rounding error breaks no budget


def _allowed_counts(size: int, min_kept: float, multiple: int) -> AllowedCounts:
    """Ascending channel counts that are allowed: multiples, and all."""
    lowest = min(math.ceil(min_kept * size / multiple) * multiple, size)
    return [*range(lowest, size, multiple), size]


def _survival(score: Tensor, uses: int) -> list[float]:
    """Logarithm of the share of importance that the best 0, 1, 2, ... channels keep, in all of their uses."""
    alive = score[score > -torch.inf].double()
    positive = (alive - alive.min().clamp_max(0.0)).clamp_min(torch.finfo(torch.float32).tiny)
    kept = positive.sort(descending=True).values.cumsum(0)
    return [-math.inf, *(uses * (kept / kept[-1]).log()).tolist()]
