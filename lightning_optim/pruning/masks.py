"""Masks over live parameters: enforced by one fused operation per optimizer, packed to bits in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_optim.surgery.shard import local


@final
class Masks:
    """The masks of some parameters, by name.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> masks = Masks()
        >>> masks.set("weight", layer.weight, torch.tensor([[True, False]]))
        >>> masks.apply()
        >>> layer.weight[0, 1].item() == 0.0
        True
        >>> masks.num_masked()
        1
    """

    def __init__(self) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        self._masks: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def set(self, name: str, parameter: nn.Parameter, keep: Tensor) -> None:
        """Mask ``parameter`` (this rank's part of it) where ``keep`` is ``False``.

        The mask has the weight's dtype and memory layout: with any other, the fused product takes a slow path.
        """
        weight = local(parameter.detach())
        self._parameters[name] = parameter
        self._masks[name] = torch.empty_like(weight).copy_(keep)

    def kept(self) -> dict[str, Tensor]:
        """Every mask as booleans, ``True`` where the weight is left."""
        return {name: mask != 0 for name, mask in self._masks.items()}

    def by_parameter(self) -> dict[nn.Parameter, Tensor]:
        """Every mask by its parameter, in that one's number format."""
        return {self._parameters[name]: mask for name, mask in self._masks.items()}

    def follow(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Forget the masks of parameters that are no longer there."""
        left = {name: held for name, held in self._parameters.items() if parameters.get(name) is held}
        self._parameters, self._masks = left, {name: self._masks[name] for name in left}

    def rebind(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Mask the parameters that have taken the place of others, under the same name and of the same shape."""
        for name, held in self._parameters.items():
            now = parameters.get(name, held)
            if now is not held and local(now.detach()).shape == self._masks[name].shape:
                self.set(name, now, self._masks[name])
                local(now.detach()).mul_(self._masks[name])

    def clear(self) -> None:
        """Forget every mask; the weights stay as they are."""
        self._parameters, self._masks = {}, {}

    @torch.no_grad()
    def apply(self) -> None:
        """Zero every masked weight."""
        if self._masks:
            torch._foreach_mul_([local(p) for p in self._parameters.values()], list(self._masks.values()))

    def enforcer(self, optimizer: Optimizer) -> Enforcer:
        """What keeps the masked weights of ``optimizer`` at zero after each of its steps."""
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        names = [name for name, parameter in self._parameters.items() if id(parameter) in owned]
        return Enforcer(
            [local(self._parameters[name].detach()) for name in names], [self._masks[name] for name in names]
        )

    @torch.no_grad()
    def zero_moments(self, optimizer: Optimizer) -> None:
        """Zero the optimizer's moments under the masks, once, when masks change: they would move masked weights."""
        for name, parameter in self._parameters.items():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0:
                    local(value).mul_(self._masks[name])

    @torch.no_grad()
    def apply_to_copy(self, copy: nn.Module) -> None:
        """Zero the masked weights of an averaged copy of the model."""
        parameters = dict(copy.named_parameters())
        for name, mask in self._masks.items():
            local(parameters[name]).mul_(mask)

    def num_masked(self) -> int:
        """Number of masked weights, on this rank."""
        return sum(mask.numel() - int(mask.count_nonzero()) for mask in self._masks.values())

    def checksum(self) -> list[tuple[str, int, int]]:
        """Enough of every mask to notice that two ranks differ: name, zeros, and a weighted sum of their places."""
        sums = []
        for name, mask in self._masks.items():
            gone = (mask == 0).flatten().nonzero()
            sums.append((name, gone.numel(), int((gone * (gone % 8191 + 1)).sum())))
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Every mask as bits: plain tensors and integers."""
        return {name: {"bits": pack(mask != 0), "shape": list(mask.shape)} for name, mask in self._masks.items()}

    def load(self, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
        """Take up the masks of ``state_dict`` over ``parameters``."""
        for name, entry in state.items():
            self.set(name, parameters[name], unpack(entry["bits"], entry["shape"]).to(parameters[name].device))

    def recover(self, names: Iterable[str], parameters: Mapping[str, nn.Parameter]) -> None:
        """Read the masks off the weights' zeros, where each rank holds another part of them."""
        for name in names:
            self.set(name, parameters[name], local(parameters[name].detach()) != 0)


@final
class Enforcer:
    """A step hook of one optimizer: one fused product, inert in a copy."""

    def __init__(self, weights: list[Tensor], masks: list[Tensor]) -> None:
        self._weights, self._masks = weights, masks

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Zero the masked weights again."""
        if self._weights:
            torch._foreach_mul_(self._weights, self._masks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Enforcer:
        return Enforcer([], [])

    def __reduce__(self) -> tuple[Any, ...]:
        return Enforcer, ([], [])


def pack(mask: Tensor) -> Tensor:
    """Eight booleans to a byte, the first in the lowest bit; on the CPU.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    return torch.from_numpy(numpy.packbits(mask.cpu().numpy(), axis=None, bitorder="little"))


def unpack(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """Mask of a shape from ``pack``; on the CPU.

    Example:
        >>> unpack(torch.tensor([5], dtype=torch.uint8), [3])
        tensor([ True, False,  True])
    """
    size = torch.Size(list(shape))
    flags = numpy.unpackbits(bits.cpu().numpy(), count=size.numel(), bitorder="little")
    return torch.from_numpy(flags.view(bool)).view(size)
