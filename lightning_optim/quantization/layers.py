"""Layers that are quantized otherwise than the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import final

from torch import nn

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.quantization.quantizer.base import Operand, Quantizer
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.surgery.select import Targets, plain_name

_NUMBERS = re.compile(r"#\d+|\[[^\]]*\]")


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuantizers:
    """Quantizers of some layers, in place of those of the whole network (mixed precision).

    Args:
        targets: The modules whose operators are meant.
        weight_quantizer: Quantizer of their weights; ``None`` is the network's.
        activation_quantizer: Quantizer of what they put out, and of inputs that they are the first to read; ``None`` is
            the network's.

    Raises:
        TypeError: If something is of another kind.
        ValueError: If no quantizer is given, or one that can't quantize weights, or activations.

    Example:
        >>> from lightning_optim.quantization import Symmetric
        >>> LayerQuantizers(targets=Targets(include=["net.head"]), weight_quantizer=Symmetric(bits=4)).weight_bits
        4
    """

    targets: Targets
    weight_quantizer: Quantizer | None = None
    activation_quantizer: Quantizer | None = None

    def __post_init__(self) -> None:
        given = {Operand.WEIGHT: self.weight_quantizer, Operand.ACTIVATION: self.activation_quantizer}
        if not any(quantizer is not None for quantizer in given.values()):
            raise ValueError("layers need a weight_quantizer or an activation_quantizer, got neither")
        for operand, quantizer in given.items():
            if quantizer is not None:
                check_operand(quantizer, operand)

    @property
    def weight_bits(self) -> int | None:
        """Width of the weights, or ``None`` if it is the network's."""
        return None if self.weight_quantizer is None else self.weight_quantizer.scheme.bits


@lru_cache(maxsize=4096)
def module_of(key: str) -> str:
    """Return the plain name of the module that an operator runs in, as its caller knows it, from the operator's key.

    Example:
        >>> module_of("block#2.conv:conv2d<0"), module_of("block:add[conv]#2")
        ('block.conv', 'block')
    """
    return _NUMBERS.sub("", key.partition(":")[0]).rpartition(">")[2]


@final
class AssignedLayers:
    """Layers with quantizers of their own: the entry of each module.

    Args:
        layers: Key -> entry.

    Attributes:
        assigned: Plain name of a module, each of its names -> key of its entry.
    """

    def __init__(self, layers: Mapping[str, LayerQuantizers] | None = None) -> None:
        self.layers = dict(layers or {})
        self.assigned: dict[str, str] = {}

    def entry_of(self, key: str) -> LayerQuantizers | None:
        """Return the entry of an operator's module, by the operator's key; ``None`` if it has none."""
        entry = self.assigned.get(module_of(key))
        return None if entry is None else self.layers[entry]

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Every quantizer of an entry."""
        of_layers = [
            each for layer in self.layers.values() for each in (layer.weight_quantizer, layer.activation_quantizer)
        ]
        return tuple(each for each in of_layers if each is not None)


def assign_layers(root: nn.Module, network: nn.Module, layers: Mapping[str, LayerQuantizers]) -> dict[str, str]:
    """Find which entry each module of a network belongs to.

    Args:
        root: Where the names of targets begin.
        network: The network, ``root`` or a module of it.
        layers: Key -> entry.

    Returns:
        Plain name of a module, relative to the network, each of its names -> key of its entry.

    Raises:
        TargetError: If an entry matches no module of the network.
        ValueError: If two entries match one module.
    """
    own: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        own.setdefault(id(module), []).append(plain_name(name))
    assigned: dict[str, str] = {}
    for key, entry in layers.items():
        selected = entry.targets.select(root, (nn.Module,)).values()
        chosen = [name for module in selected for name in own.get(id(module), ())]
        if not chosen:
            raise TargetError(f"layers.{key}: targets match no module of {type(network).__name__}")
        taken = next((name for name in chosen if name in assigned), None)
        if taken is not None:
            raise ValueError(
                f"layers.{assigned[taken]} and layers.{key} both match {taken!r}; exclude it from one of them"
            )
        assigned.update(dict.fromkeys(chosen, key))
    return assigned
