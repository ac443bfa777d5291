"""How channels are spread when what they cost counts."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning_optim.cost.base import Cost
from lightning_optim.cost.prices import Prices
from lightning_optim.pruning.allocation.base import Allocation


class PricedAllocation(ABC):
    """A setting that becomes an allocation once the network is priced."""

    cost: Cost

    @abstractmethod
    def start(self, prices: Prices, *, multiple: int, highest: float) -> Allocation:
        """Return the allocation for one network.

        Args:
            prices: What the original network costs for any channels of its pools.
            multiple: Channels are kept in multiples of it; at least 1.
            highest: Largest value that the schedule will reach.

        Raises:
            ValueError: If ``highest`` cannot be reached.
        """
