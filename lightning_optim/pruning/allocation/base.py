"""Interface of allocations: how a sparsity is spread over layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, distributed
from typing_extensions import override

from lightning_optim.cost.base import Cost
from lightning_optim.cost.prices import Prices


class AllocationSetting(ABC):
    """An allocation, or what becomes one once the network is priced."""

    @abstractmethod
    def priced_by(self) -> Cost | None:
        """The cost that the network must be priced by first; ``None`` if the allocation counts entries alone."""

    @abstractmethod
    def start(self, prices: Prices | None, *, multiple: int, highest: float) -> Allocation:
        """Return the allocation for one network.

        Args:
            prices: What the original network costs for any channels of its pools; ``None`` unless ``priced_by``.
            multiple: Channels are kept in multiples of it; at least 1.
            highest: Largest value that the schedule will reach.

        Raises:
            ValueError: If ``highest`` cannot be reached.
        """


class Allocation(AllocationSetting):
    """Allocation: decides how many entries each pool of scores loses, and so which."""

    @override
    def priced_by(self) -> Cost | None:
        return None

    @override
    def start(self, prices: Prices | None, *, multiple: int, highest: float) -> Allocation:
        return self

    @abstractmethod
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """Mark what is dropped with ``False``.

        Args:
            scores: Importance of every entry of every pool (a layer's weights, a group's channels); ``-inf`` for what
                has gone already, ``inf`` for what must stay.
            sparsity: Fraction of all entries that shall be gone, in ``[0, 1)``.
            group: Process group over which each pool is sharded; ``None`` if each rank sees all of it.

        Returns:
            Boolean masks, shaped as the scores.
        """
