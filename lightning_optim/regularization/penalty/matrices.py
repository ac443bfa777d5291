"""Weights of layers as matrices."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_optim.surgery.layer_kinds import is_input_first, outputs_first
from lightning_optim.surgery.torch_private import Convolution


def as_matrices(layer: nn.Module, weight: Tensor) -> Tensor:
    """View a layer's weight as a matrix ``[outputs, inputs]``, positions of a kernel among the inputs.

    A grouped convolution is ``[groups, outputs, inputs]``: no output channel reads what those of another group read.

    Args:
        layer: A convolution or linear layer.
        weight: Its weight.

    Example:
        >>> import torch
        >>> layer = nn.Conv2d(4, 6, 3, groups=2)
        >>> as_matrices(layer, layer.weight).shape
        torch.Size([2, 3, 18])
    """
    if not (isinstance(layer, Convolution) and layer.groups > 1):
        return outputs_first(layer, weight).flatten(1)
    blocks = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return (blocks.transpose(1, 2) if is_input_first(layer) else blocks).flatten(2)
