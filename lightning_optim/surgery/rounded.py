"""Layers that round their weight and their input to few bits, as a quantized network would."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.surgery.layer_kinds import outputs_first
from lightning_optim.surgery.select import plain_name

_HOOKS = {"_forward_pre_hooks": "_forward_pre_hooks_with_kwargs", "_forward_hooks": "_forward_hooks_always_called"}
"""Where torch keeps hooks, and what it notes of ours."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BitWidths:
    """Bit widths of one layer.

    Args:
        weight: Bits of a weight.
        activation: Bits of an entry of its input; ``None`` is floating point.
    """

    weight: int
    activation: int | None = None

    def __str__(self) -> str:
        return f"w{self.weight}" + ("" if self.activation is None else f"a{self.activation}")


@final
class Rounding:
    """Rounding of one layer, by hooks that a copy or a pickle of the layer has too.

    While the layer runs, it holds its rounded weight. Gradients pass as if nothing were rounded (straight through).

    Args:
        widths: Of the layer.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 0.3)
        >>> Rounding(BitWidths(weight=2)).attach(layer)
        >>> layer(torch.ones(1, 2)), layer.weight[0, 0]
        (tensor([[0.6000]], grad_fn=<...>), tensor(0.3000, grad_fn=<...>))
    """

    def __init__(self, widths: BitWidths) -> None:
        self.widths = widths
        self._whole: list[Tensor] = []

    def attach(self, layer: nn.Module) -> None:
        """Set the hooks, innermost around the layer's forward."""
        layer.register_forward_pre_hook(self.begin, with_kwargs=True)
        layer.register_forward_hook(self.end, prepend=True, always_call=True)

    def begin(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer is called: take its weight, and return what it is called with."""
        held = vars(layer)["_parameters"]
        self._whole.append(held["weight"])
        held["weight"] = outputs_first(layer, rounded_weight(outputs_first(layer, held["weight"]), self.widths.weight))
        if self.widths.activation is None:
            return args, kwargs
        if args:
            return (rounded_activation(args[0], self.widths.activation), *args[1:]), kwargs
        return args, {name: rounded_activation(value, self.widths.activation) for name, value in kwargs.items()}

    def end(self, layer: nn.Module, *_: Any) -> None:
        """The layer has returned, or raised: give it its weight back."""
        if self._whole:
            vars(layer)["_parameters"]["weight"] = self._whole.pop()


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """Round a weight to signed integers of its output channel's own step, symmetrically around 0.

    The step of channel ``o`` is ``max |w[o]| / (2 ** (bits - 1) - 1)``.

    Args:
        weight: Shape ``[out, ...]``.
        bits: At least 2.

    Example:
        >>> rounded_weight(torch.tensor([[1.0, 0.4], [0.2, -0.1]]), bits=2)
        tensor([[1.0000, 0.0000],
                [0.2000, 0.0000]])
    """
    largest = 2 ** (bits - 1) - 1
    extreme = weight.detach().abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    step = extreme.clamp(min=torch.finfo(weight.dtype).tiny) / largest
    return _straight_through(weight, (weight.detach() / step).round().clamp(-largest, largest) * step)


def rounded_activation(x: Tensor, bits: int) -> Tensor:
    """Round a tensor to unsigned integers between its own extremes, with an integer for 0.

    Args:
        x: Any tensor.
        bits: At least 2.

    Example:
        >>> rounded_activation(torch.tensor([0.0, 0.4, 1.0, 3.0]), bits=2)
        tensor([0., 0., 1., 3.])
    """
    if not x.numel():
        return x
    largest, held = 2**bits - 1, x.detach()
    low, high = held.amin().clamp(max=0.0), held.amax().clamp(min=0.0)
    step = (high - low).clamp(min=torch.finfo(x.dtype).tiny) / largest
    zero = (-low / step).round()
    return _straight_through(x, (((held / step).round() + zero).clamp(0, largest) - zero) * step)


def rounded_layers(network: nn.Module) -> dict[str, tuple[nn.Module, BitWidths]]:
    """Every layer that rounds, by its plain name, with its widths."""
    found = {}
    for name, layer in network.named_modules():
        for hook in vars(layer)["_forward_pre_hooks"].values():
            rounding = _rounding_of(hook)
            if rounding is not None:
                found[plain_name(name)] = (layer, rounding.widths)
    return found


def take_off_rounding(network: nn.Module) -> None:
    """Let every layer compute in floating point again.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> Rounding(BitWidths(weight=2)).attach(layer)
        >>> take_off_rounding(layer)
        >>> rounded_layers(layer)
        {}
    """
    for layer, _ in rounded_layers(network).values():
        for kind, flags in _HOOKS.items():
            for key in [key for key, hook in vars(layer)[kind].items() if _rounding_of(hook) is not None]:
                del vars(layer)[kind][key], vars(layer)[flags][key]


def _rounding_of(hook: object) -> Rounding | None:
    owner = hook.__self__ if isinstance(hook, MethodType) else None
    return owner if isinstance(owner, Rounding) else None


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    return rounded + (value - value.detach())
