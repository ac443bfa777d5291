"""Interface of a zero-cost score, and what all of them begin with: fresh weights and made-up inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.torch_private import pytree


class ZeroCostScore(ABC):
    """Zero-cost score: ranks untrained networks by one or two passes, higher first."""

    @abstractmethod
    def measure(self, network: nn.Module, inputs: Inputs, seed: int) -> float:
        """Score a network.

        Args:
            network: Left as it is; its weights do not matter, since each score draws its own.
            inputs: An example of what it takes.
            seed: Seeds weights and inputs: two networks are compared under the same.
        """


@runtime_checkable
class Resettable(Protocol):
    """Layer of torch, which knows how its weights are drawn."""

    def reset_parameters(self) -> None:
        """Draw its weights anew."""
        ...


def fresh_copy(network: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose layers have drawn their weights anew, on the CPU.

    Layers of torch draw as they do when they are built; a parameter that belongs to no such layer stays.
    """
    copy = copy_model(network).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in copy.modules():
            if isinstance(module, Resettable):
                module.reset_parameters()
    return copy


def filled(inputs: Inputs, num_samples: int | None, fill: Callable[[Tensor], Tensor]) -> Inputs:
    """Return inputs whose floating-point tensors are filled anew, of as many samples as said.

    Args:
        inputs: The example; the first dimension of its first tensor counts samples.
        num_samples: Samples wanted; ``None`` keeps those of the example. Tensors with the example's number of samples
            are repeated.
        fill: Called with each floating-point tensor, once it has its size.
    """
    given: Any = (inputs.args, inputs.kwargs)
    leaves = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor) and leaf.dim()]
    batch = leaves[0].shape[0] if leaves else 0

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        value = leaf.detach().cpu()
        if num_samples is not None and value.dim() and value.shape[0] == batch and batch:
            times = -(-num_samples // batch)
            value = value.repeat(times, *[1] * (value.dim() - 1))[:num_samples]
        return fill(value) if value.is_floating_point() else value

    args, kwargs = pytree.tree_map(made, given)
    return Inputs(tuple(args), dict(kwargs))


def floats_in(output: Any) -> list[Tensor]:
    """The floating-point tensors that a network returns."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
