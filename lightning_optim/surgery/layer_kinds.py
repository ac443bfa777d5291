"""Layers with a matrix of weights, and in which order it stands."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from types import FunctionType

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.surgery.parametrized import weight_names
from lightning_optim.surgery.select import plain_name, unwrapped
from lightning_optim.surgery.torch_private import TransposedConvolution


class Conv1D(nn.Module, ABC):
    """Linear layer whose weight is ``[in, out]``, as GPT-2 has it in ``transformers``, wherever its class comes from.

    A class is one of these if it, or one that it derives from, has that name, and multiplies by a weight of its own.
    """

    weight: nn.Parameter
    nf: int

    @classmethod
    @override
    def __subclasshook__(cls, subclass: type) -> bool:
        return issubclass(subclass, nn.Module) and any(
            kind.__name__ == "Conv1D" and _multiplies(kind) for kind in subclass.__mro__
        )


def _multiplies(kind: type) -> bool:
    forward = vars(kind).get("forward")
    return isinstance(forward, FunctionType) and {"addmm", "weight"}.issubset(forward.__code__.co_names)


LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    Conv1D,
)
"""Convolutions and linear layers."""


def has_output_rows(layer: nn.Module) -> bool:
    """Whether a layer is a convolution or linear layer whose weight has a slice for each output channel.

    In groups a transposed convolution has none: one slice makes a channel of each group.

    Example:
        >>> [has_output_rows(nn.ConvTranspose1d(4, 4, 3, groups=groups)) for groups in (1, 2)]
        [True, False]
    """
    return isinstance(layer, LAYERS) and not (isinstance(layer, TransposedConvolution) and layer.groups > 1)


def is_input_first(layer: nn.Module) -> bool:
    """Whether a layer's weight is ``[in, out, ...]``, and not ``[out, in, ...]``.

    Example:
        >>> is_input_first(nn.ConvTranspose2d(1, 2, 3)), is_input_first(nn.Linear(1, 2))
        (True, False)
    """
    return isinstance(layer, (TransposedConvolution, Conv1D))


def outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """View a layer's weight, or what is shaped like it, as ``[out, in, ...]``; a second call undoes the first.

    Example:
        >>> layer = nn.ConvTranspose1d(3, 5, 2)
        >>> outputs_first(layer, layer.weight).shape
        torch.Size([5, 3, 2])
    """
    return weight.transpose(0, 1) if is_input_first(layer) else weight


def role_of(layer: nn.Module, dim: int) -> int:
    """What a dimension of a layer's weight would be if that were ``[out, in, ...]``.

    Example:
        >>> [role_of(nn.ConvTranspose1d(3, 5, 2), dim) for dim in range(3)]
        [1, 0, 2]
    """
    return 1 - dim if is_input_first(layer) and dim < 2 else dim


def input_first_weights(network: nn.Module) -> frozenset[str]:
    """Plain names of the weights of a network that are ``[in, out, ...]``."""
    layers = {plain_name(name): layer for name, layer in unwrapped(network).named_modules() if is_input_first(layer)}
    return frozenset(weight_names(layers))


def turned(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """View weights of a network, or masks of them, as ``[out, in, ...]``; a second call undoes the first.

    Args:
        network: The network.
        tensors: What is shaped as its parameters, by their plain names; all but such weights is returned as it is.
    """
    names = input_first_weights(network)
    return {name: tensor.transpose(0, 1) if name in names else tensor for name, tensor in tensors.items()}
