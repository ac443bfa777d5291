"""Output layers of a network: those whose output is the network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.modes import evaluating


def output_layers(
    network: nn.Module, layers: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> set[str]:
    """Names of the layers whose output is the network's, by one forward pass; no graph is needed.

    A layer counts if the network returns its output, or a view of it; the layer called last counts in any case, since a
    softmax or a sum may follow it.

    Args:
        network: Called in evaluation mode, its modes and the random state kept.
        layers: Layers of it by name.
        args: Positional inputs.
        kwargs: Keyword inputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Softmax(-1))
        >>> output_layers(net, {"0": net[0], "2": net[2]}, (torch.ones(1, 2),), {})
        {'2'}
    """
    order: list[tuple[str, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: order.append((name, output)))
        for name, layer in layers.items()
    ]
    try:
        with evaluating(network), torch.random.fork_rng(devices=[]):
            returned = network(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    stores = {_storage(tensor) for tensor in tensors_of(returned)}
    return {name for name, output in order if _storage(output) in stores} | {name for name, _ in order[-1:]}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
