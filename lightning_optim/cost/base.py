"""Base of all costs: what a network takes, in a unit of the cost's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn

from lightning_optim.cost.prices import Channels, Prices
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.surgery.inputs import Inputs


@final
@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Network that is priced, with its coupled channels and inputs.

    Args:
        network: The network; left untouched.
        coupling: Its coupled channels.
        pools: Groups whose channels may be removed, by the name of their pool.
        args: Positional inputs that were captured.
        kwargs: Keyword inputs that were captured.
        choose: Chooses the channels to keep at given prices, where a caller knows how: a cost that is measured is
            corrected by the network that its prices lead to. Returns ``None`` where the prices leave no choice.
    """

    network: nn.Module
    coupling: Coupling
    pools: Mapping[str, Group]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    choose: Callable[[Prices], Channels | None] | None = None


class Cost(ABC):
    """Cost of a network: of one as it is, or of any number of channels from one look at it."""

    @abstractmethod
    def prices(self, subject: Subject) -> Prices:
        """Return the subject's cost as a function of the channels of each pool."""

    @abstractmethod
    def measure(self, network: nn.Module, inputs: Inputs) -> float:
        """Return what one call of a network costs as it is, in this cost's unit.

        Args:
            network: The network; left untouched.
            inputs: Arguments of the call; more samples may cost more.
        """
