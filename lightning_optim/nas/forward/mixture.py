"""Mixture of options: several operations run, and their outputs are added with weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import ge
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_optim.nas.forward.switchable import SwitchableForward, switchable_forwards
from lightning_optim.surgery.torch_private import pytree

_POOLS: Mapping[int, Callable[..., Tensor]] = {
    3: F.adaptive_max_pool1d,
    4: F.adaptive_max_pool2d,
    5: F.adaptive_max_pool3d,
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Mixture of the options of one decision.

    Args:
        weights: Weight of each option that runs, by its index; scalars, which may need a gradient.
        skip: Weight of the input itself, which is added to the output where both have one shape (DARTS-).
        channels: Which channels go through the options, one boolean each, for dimension 1 of the input; each stands for
            several next to each other where the input has more. The others go past them, as maximum of what is pooled
            where the options make the sizes smaller (PC-DARTS). ``None`` is all.
    """

    weights: Mapping[int, Tensor]
    skip: float = 0.0
    channels: Tensor | None = None


class MixedForward(SwitchableForward):
    """Switchable forward that can run several options of its decision at once.

    Attributes:
        decision: Name of the decision.
    """

    decision: str

    @abstractmethod
    def mix(self, mixture: Mixture) -> None:
        """Run a mixture, until the next ``activate``."""


def mix(root: nn.Module, mixtures: Mapping[str, Mixture]) -> None:
    """Make ``root``, a supernet or a copy of one, run mixtures in some decisions, until the next ``activate``."""
    for forward in switchable_forwards(root) if mixtures else ():
        if isinstance(forward, MixedForward) and forward.decision in mixtures:
            forward.mix(mixtures[forward.decision])


def mixed_forwards(root: nn.Module) -> dict[str, MixedForward]:
    """The forwards that can mix their options, by decision."""
    return {each.decision: each for each in switchable_forwards(root) if isinstance(each, MixedForward)}


def run_mixture(mixture: Mixture, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run the options of a mixture and add up what they return.

    Args:
        mixture: Which options, and how much of each.
        run: Runs one option, given its index and the inputs; all of them return one structure of tensors.
        args: Positional inputs; ``channels`` and ``skip`` act where the first of them is a tensor.
        kwargs: Keyword inputs.

    Returns:
        The structure, its tensors of numbers with a fraction mixed; anything else is that of the first option.

    Example:
        >>> half = Mixture(weights={0: torch.tensor(0.5), 1: torch.tensor(0.25)})
        >>> run_mixture(half, lambda option, x: x * (10 if option else 1), torch.ones(1))
        tensor([3.])
    """
    x = args[0] if args and isinstance(args[0], Tensor) else None
    mask = None if mixture.channels is None or x is None else _mask(mixture.channels, x)
    given = args if mask is None or x is None else (x * mask, *args[1:])
    outputs = [pytree.tree_flatten(run(option, *given, **kwargs)) for option in mixture.weights]
    structure, by_option = outputs[0][1], [leaves for leaves, _ in outputs]
    weights = list(mixture.weights.values())
    mixed = [_mixed(leaves, weights) for leaves in zip(*by_option, strict=True)]
    if x is not None and structure.is_leaf() and isinstance(mixed[0], Tensor) and can_go_past(x, mixed[0]):
        mixed[0] = _with_input(mixed[0], x, mask, mixture.skip)
    return pytree.tree_unflatten(mixed, structure)


def can_go_past(x: Tensor, output: Tensor) -> bool:
    """Whether an input can stand for an output: of its shape, or with as many channels and larger sizes.

    Example:
        >>> x = torch.ones(1, 2, 8, 8)
        >>> can_go_past(x, torch.ones(1, 2, 4, 4)), can_go_past(x, torch.ones(1, 4, 8, 8))
        (True, False)
    """
    is_pooled = x.dim() in _POOLS and x.dim() == output.dim() and x.shape[:2] == output.shape[:2]
    return x.shape == output.shape or (is_pooled and all(map(ge, x.shape[2:], output.shape[2:])))


def _mask(channels: Tensor, x: Tensor) -> Tensor:
    nearest = torch.arange(x.shape[1], device=channels.device) * len(channels) // x.shape[1]
    return channels[nearest].to(x).view(1, -1, *(1,) * (x.dim() - 2))


def _mixed(leaves: tuple[Any, ...], weights: list[Tensor]) -> Any:
    if not (isinstance(leaves[0], Tensor) and leaves[0].is_floating_point()):
        return leaves[0]
    return reduce(torch.add, (weight.to(leaf) * leaf for weight, leaf in zip(weights, leaves, strict=True)))


def _with_input(mixed: Tensor, x: Tensor, mask: Tensor | None, skip: float) -> Tensor:
    around = x if x.shape == mixed.shape else _POOLS[x.dim()](x, mixed.shape[2:])
    past = mixed if mask is None else mixed * mask + around * (1.0 - mask)
    return past + skip * x if skip and x.shape == mixed.shape else past
