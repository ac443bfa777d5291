"""Weight size in bytes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.axis_widths import AxisWidths
from lightning_optim.cost.base import Cost, Subject
from lightning_optim.cost.prices import Prices, Product
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.rounded import rounded_layers
from lightning_optim.surgery.select import plain_name


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes(Cost):
    """Weight size: bytes of all parameters and buffers in their data types; a shared one counts once.

    A weight that its layer rounds, as ``LayerBits`` has it, counts with the bits chosen, without its scales.
    """

    @override
    def prices(self, subject: Subject) -> Prices:
        axis_widths = AxisWidths(subject.coupling, subject.pools)
        held = itertools.chain(subject.network.named_parameters(), subject.network.named_buffers())
        named = {plain_name(name): tensor for name, tensor in held}
        bits = _rounded_bits(subject.network)
        terms = (
            Product(name, _bytes_of_entry(tensor, bits), axis_widths.of_tensor(name, tuple(tensor.shape)))
            for name, tensor in named.items()
        )
        return Prices("bytes", axis_widths.pools, tuple(terms))

    @override
    def measure(self, network: nn.Module, inputs: Inputs) -> float:
        held, bits = itertools.chain(network.parameters(), network.buffers()), _rounded_bits(network)
        return float(sum(tensor.numel() * _bytes_of_entry(tensor, bits) for tensor in held))


def _rounded_bits(network: nn.Module) -> dict[int, int]:
    """Bits of the weights that layers round, by the tensor's identity; the most where layers share one."""
    bits: dict[int, int] = {}
    for layer, widths in rounded_layers(network).values():
        key = id(vars(layer)["_parameters"]["weight"])
        bits[key] = max(widths.weight, bits.get(key, 0))
    return bits


def _bytes_of_entry(tensor: Tensor, bits: Mapping[int, int]) -> float:
    return bits.get(id(tensor), 8 * tensor.element_size()) / 8
