"""Bit widths that a search has chosen, handed on from the extracted network."""

from __future__ import annotations

from torch import nn

from lightning_optim.surgery.rounded import BitWidths, rounded_layers, take_off_rounding

__all__ = ["BitWidths", "find_bits", "release_bits"]


def find_bits(network: nn.Module) -> dict[str, BitWidths]:
    """Return the bit widths of every layer of an extracted network that has any, by its name."""
    return {name: widths for name, (_, widths) in rounded_layers(network).items()}


def release_bits(network: nn.Module) -> dict[str, BitWidths]:
    """Return the bit widths of an extracted network's layers, and let it compute in floating point from now on.

    Args:
        network: What ``extract`` has returned; changed in place.

    Returns:
        Name of a layer -> its widths, ready for the settings of single layers in quantization-aware training.

    Example:
        >>> import torch
        >>> from lightning_optim import Targets
        >>> from lightning_optim.nas import LayerBits
        >>> from lightning_optim.nas.space.base import Site
        >>> from lightning_optim.nas.supernet import build_supernet
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> bits = LayerBits(targets=Targets(), bits=[[4, 8]])
        >>> supernet = build_supernet(Site(root=net, network="", args=(torch.ones(1, 4),)), {"bits": bits})
        >>> widths = release_bits(supernet.extract({"0:bits": 0, "2:bits": 1}))
        >>> widths
        {'0': BitWidths(weight=4, activation=8)}
        >>> from lightning_optim.quantization import Affine, LayerQuantizers, Symmetric
        >>> layers = {
        ...     name: LayerQuantizers(
        ...         targets=Targets(include=[name]),
        ...         weight_quantizer=Symmetric(bits=each.weight),
        ...         activation_quantizer=Affine(bits=each.activation),
        ...     )
        ...     for name, each in widths.items()
        ... }
        >>> layers["0"].weight_bits
        4
    """
    found = find_bits(network)
    take_off_rounding(network)
    return found
