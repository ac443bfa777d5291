"""Interface of allocations that spread a cost over channels."""

from __future__ import annotations

from abc import abstractmethod

from typing_extensions import override

from lightning_optim.cost.base import Cost
from lightning_optim.cost.prices import Prices
from lightning_optim.pruning.allocation.base import Allocation, AllocationSetting


class PricedAllocation(AllocationSetting):
    """Priced allocation: a setting that becomes an allocation once the network is priced.

    Attributes:
        cost: What a channel is priced by.
    """

    cost: Cost

    @override
    def priced_by(self) -> Cost | None:
        return self.cost

    @override
    def start(self, prices: Prices | None, *, multiple: int, highest: float) -> Allocation:
        if prices is None:
            raise ValueError(f"{type(self).__name__!r} needs the network's prices before its first decision")
        return self.start_priced(prices, multiple=multiple, highest=highest)

    @abstractmethod
    def start_priced(self, prices: Prices, *, multiple: int, highest: float) -> Allocation:
        """Return the allocation for one network of known prices; see ``start``."""
