"""Weight size in bytes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.axis_widths import AxisWidths
from lightning_optim.cost.base import Cost, Subject
from lightning_optim.cost.prices import Prices, Product
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.select import plain_name


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes(Cost):
    """Weight size: bytes of all parameters and buffers in their data types; a shared one counts once."""

    @override
    def prices(self, subject: Subject) -> Prices:
        axis_widths = AxisWidths(subject.coupling, subject.pools)
        held = itertools.chain(subject.network.named_parameters(), subject.network.named_buffers())
        named = {plain_name(name): tensor for name, tensor in held}
        terms = (
            Product(name, float(tensor.element_size()), axis_widths.of_tensor(name, tuple(tensor.shape)))
            for name, tensor in named.items()
        )
        return Prices("bytes", axis_widths.pools, tuple(terms))

    @override
    def measure(self, network: nn.Module, inputs: Inputs) -> float:
        held = itertools.chain(network.parameters(), network.buffers())
        return float(sum(tensor.numel() * tensor.element_size() for tensor in held))
