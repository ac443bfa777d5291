"""Rounded weights that their quantizer finds again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_optim.quantization.functional import per_channel
from lightning_optim.quantization.quantizer.base import Quantizer

_SAME = 1e-3  # of a step: what may lie between a rounded weight and what its own scale makes of it


def largest_of_each_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """Return which weights are the largest of those that share a scale: while they stay, a range gives the same scale.

    Args:
        weight: ``[O, ...]``; ``[O, I]`` for groups.
        scale: ``[O, G]``, ``[O]`` or a scalar.

    Example:
        >>> largest_of_each_scale(torch.tensor([[1.0, -2.0], [0.5, 0.1]]), torch.ones(2))
        tensor([[False,  True],
                [ True, False]])
    """
    magnitudes = weight.abs().flatten(1)
    if scale.dim() == 2:
        groups = magnitudes.view(*scale.shape, -1)
        return (groups == groups.amax(2, keepdim=True)).view_as(weight)
    largest = magnitudes.amax(1, keepdim=True) if scale.dim() else magnitudes.max()
    return (magnitudes == largest).view_as(weight)


def is_found_again(rounded: Tensor, quantizer: Quantizer, scale: Tensor) -> bool:
    """Whether a quantizer gives rounded weights, and no others, from the rounded weights themselves."""
    found = quantizer.fake(rounded, per_channel(quantizer.weight_scale(rounded), rounded), None)
    return bool(((found - rounded).abs() <= _SAME * per_channel(scale, rounded)).all())


@torch.no_grad()
def replace_weight(layer: nn.Module, rounded: Tensor | None) -> bool:
    """Write rounded weights into a layer, if there are some; tell whether there were."""
    if rounded is None:
        return False
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight.copy_(rounded)
    return True
