"""Parameter count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.axis_widths import AxisWidths
from lightning_optim.cost.base import Cost, Subject
from lightning_optim.cost.count import count_parameters
from lightning_optim.cost.prices import Prices, Product
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.select import plain_name


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters(Cost):
    """Parameter count; a shared parameter counts once."""

    @override
    def prices(self, subject: Subject) -> Prices:
        axis_widths = AxisWidths(subject.coupling, subject.pools)
        named = {plain_name(name): tuple(tensor.shape) for name, tensor in subject.network.named_parameters()}
        terms = (Product(name, 1.0, axis_widths.of_tensor(name, shape)) for name, shape in named.items())
        return Prices("parameters", axis_widths.pools, tuple(terms))

    @override
    def measure(self, network: nn.Module, inputs: Inputs) -> float:
        return float(count_parameters(network))
