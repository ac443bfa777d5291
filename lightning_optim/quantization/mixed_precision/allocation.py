"""Bit allocation: which width each layer gets, under a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_optim.cost.base import Cost
from lightning_optim.cost.knapsack import MOST_STATES, cheapest_choices
from lightning_optim.cost.macs import MACs
from lightning_optim.cost.weight_bytes import WeightBytes
from lightning_optim.quantization.layers import LayerQuantizers
from lightning_optim.quantization.mixed_precision.sensitivity import (
    BitLatency,
    BitSensitivity,
    LayerLoss,
    quantizers_by_bits,
)
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.surgery.select import Targets

_NANO = 1e9


def allocate_bits(
    sensitivity: BitSensitivity, *, average_bits: float, cost: Cost | None = None, most_states: int = MOST_STATES
) -> dict[str, int]:
    """Choose widths whose losses, added up, are least among all that cost at most so many bits on average.

    What layers lose is taken to add up (as in HAWQ-V2, Dong et al., 2020; arXiv:1911.03852, section 3.1): a knapsack
    with one choice a layer, solved exactly by dynamic programming over all pairs of cost and loss that no other pair
    beats in both. Where these become too many, the best of each of ``most_states`` equal steps of cost go on.

    Args:
        sensitivity: What each layer loses at each width.
        average_bits: The budget: as much as if all layers had this width.
        cost: What a bit is charged for: ``WeightBytes()`` counts each weight, ``MACs()`` each multiply-accumulate.
            ``None`` is ``WeightBytes()``.
        most_states: How many pairs to follow at most, at least 1.

    Returns:
        Name of a layer -> its width.

    Raises:
        TypeError: If bits have no price in this cost.
        ValueError: If even the smallest width of the table costs more, or a setting is out of range.

    Example:
        >>> from lightning_optim.quantization import LayerLoss
        >>> layers = (
        ...     LayerLoss(layer="a", num_weights=10, macs=10, values=(9.0, 1.0)),
        ...     LayerLoss(layer="b", num_weights=10, macs=10, values=(2.0, 1.0)),
        ... )
        >>> allocate_bits(BitSensitivity(bits=(2, 4), base=0.0, layers=layers), average_bits=3.0)
        {'a': 4, 'b': 2}
    """
    if not average_bits >= sensitivity.bits[0]:
        raise ValueError(
            f"average_bits of {average_bits} is below the smallest width of the table, {sensitivity.bits[0]}: raise "
            "it, or measure fewer bits"
        )
    if most_states < 1:
        raise ValueError(f"most_states must be at least 1, got {most_states}")
    layers = sensitivity.layers
    units = [_price_of_a_bit(layer, cost or WeightBytes()) for layer in layers]
    costs = [[unit * bits for bits in sensitivity.bits] for unit in units]
    losses = [sensitivity.losses(layer) for layer in layers]
    budget = int(average_bits * sum(units) * (1.0 + 1e-12))  # a rounding error breaks no budget
    chosen = cheapest_choices(costs, losses, budget, most_states)
    return {layer.layer: sensitivity.bits[place] for layer, place in zip(layers, chosen, strict=True)}


def _price_of_a_bit(layer: LayerLoss, cost: Cost) -> int:
    """What one more bit of a layer's weights costs, in bits: of storage, or of multiplications."""
    if isinstance(cost, WeightBytes):
        return layer.num_weights
    if isinstance(cost, MACs):
        return layer.macs
    raise TypeError(
        f"bits are charged by WeightBytes() or MACs(), got {cost!r}: choose one of them, or, for a time, measure "
        "bit_latency and call allocate_latency"
    )


def allocate_latency(
    sensitivity: BitSensitivity, latency: BitLatency, *, seconds: float, most_states: int = MOST_STATES
) -> dict[str, int]:
    """Choose widths whose losses, added up, are least among all that take at most so many seconds.

    What layers save is taken to add up, as what they lose; see ``allocate_bits``.

    Args:
        sensitivity: What each layer loses at each width.
        latency: What a pass takes at each width of each layer, over the same widths.
        seconds: The budget, of a whole pass.
        most_states: How many pairs to follow at most, at least 1.

    Returns:
        Name of a layer -> its width.

    Raises:
        ValueError: If the tables are not of the same layers and widths, or even the fastest widths take longer.

    Example:
        >>> from lightning_optim.quantization import LayerLoss
        >>> layers = (LayerLoss(layer="a", num_weights=10, macs=10, values=(9.0, 1.0)),)
        >>> latency = BitLatency(bits=(2, 4), base=3.0, layers={"a": (1.0, 2.0)})
        >>> allocate_latency(BitSensitivity(bits=(2, 4), base=0.0, layers=layers), latency, seconds=2.5)
        {'a': 4}
    """
    layers = sensitivity.layers
    if latency.bits != sensitivity.bits or latency.layers.keys() != {layer.layer for layer in layers}:
        raise ValueError("sensitivity and latency must be of the same layers and widths")
    saved = [[latency.base - taken for taken in latency.layers[layer.layer]] for layer in layers]
    fastest = latency.base - sum(map(max, saved))
    if not seconds >= fastest:
        raise ValueError(f"a budget of {seconds:.3g} s is below the floor, the {fastest:.3g} s of the fastest widths")
    costs = [[round(-_NANO * each) for each in own] for own in saved]
    budget = max(math.floor(_NANO * (seconds - latency.base)), sum(map(min, costs)))
    chosen = cheapest_choices(costs, [sensitivity.losses(layer) for layer in layers], budget, most_states)
    return {layer.layer: sensitivity.bits[place] for layer, place in zip(layers, chosen, strict=True)}


def layer_quantizers(
    widths: Mapping[str, int], weight_quantizers: Sequence[Quantizer], *, network: str = ""
) -> dict[str, LayerQuantizers]:
    """Return ``layers`` for ``QATFakeQuant``, one entry a width.

    Args:
        widths: Name of a layer, relative to the network -> its width.
        weight_quantizers: One for each of these widths.
        network: Plain name of the network in the LightningModule; ``""`` where ``QATFakeQuant`` gets the network alone.

    Raises:
        ValueError: If a width has no quantizer, or two.

    Example:
        >>> from lightning_optim.quantization import Symmetric
        >>> found = layer_quantizers({"a": 4, "b": 2, "c": 4}, [Symmetric(bits=2), Symmetric(bits=4)], network="net")
        >>> {key: entry.targets.include for key, entry in found.items()}
        {'bits_2': ('net.b',), 'bits_4': ('net.a', 'net.c')}
    """
    by_bits = quantizers_by_bits(weight_quantizers)
    missing = sorted(set(widths.values()) - by_bits.keys())
    if missing:
        raise ValueError(f"no quantizer has a width of {missing[0]}: weight_quantizers have {list(by_bits)}")
    names = {bits: [name for name, width in widths.items() if width == bits] for bits in by_bits}
    return {
        f"bits_{bits}": LayerQuantizers(
            targets=Targets(include=tuple(f"{network}.{name}" if network else name for name in names[bits])),
            weight_quantizer=quantizer,
        )
        for bits, quantizer in by_bits.items()
        if names[bits]
    }
