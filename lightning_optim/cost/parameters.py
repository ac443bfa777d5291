"""The number of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.cost.base import Cost
from lightning_optim.cost.prices import Prices, Product
from lightning_optim.cost.ruler import Ruler
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.surgery.select import plain_name


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters(Cost):
    """Every parameter counts once, a shared one too."""

    @override
    def __call__(
        self,
        network: nn.Module,
        coupling: Coupling,
        pools: Mapping[str, Group],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Prices:
        ruler = Ruler(coupling, pools)
        named = {plain_name(name): tuple(tensor.shape) for name, tensor in network.named_parameters()}
        terms = (Product(name, 1.0, ruler.of_tensor(name, shape)) for name, shape in named.items())
        return Prices("parameters", ruler.pools, tuple(terms))
