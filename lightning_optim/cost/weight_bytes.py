"""The size of the weights."""

from __future__ import annotations

import itertools
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
class WeightBytes(Cost):
    """Bytes of all parameters and buffers, as they are held; a shared one counts once."""

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
        held = itertools.chain(network.named_parameters(), network.named_buffers())
        named = {plain_name(name): tensor for name, tensor in held}
        terms = (
            Product(name, float(tensor.element_size()), ruler.of_tensor(name, tuple(tensor.shape)))
            for name, tensor in named.items()
        )
        return Prices("bytes", ruler.pools, tuple(terms))
