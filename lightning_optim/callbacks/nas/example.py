"""An example of what goes into the network, before any data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_optim.surgery.example import ExampleInputs, first_rows

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def network_inputs(pl_module: LightningModule, network: nn.Module, example: Any = None) -> Inputs:
    """Return the network's arguments for a small batch, on its device.

    Args:
        pl_module: Its ``example_input_array`` goes through its ``forward``, and what reaches the network is taken.
        network: The network.
        example: Taken instead, as the network's own input: a tensor, a sequence of arguments, or a mapping of
            keyword arguments.

    Returns:
        Positional and keyword arguments.

    Raises:
        ValueError: If there is no example, or the module's own does not reach the network.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    if example is not None:
        return _arguments(example, device)
    if pl_module.example_input_array is None:
        raise ValueError(
            "an example of what goes into the network is needed: set example_input_array in the "
            "LightningModule, or example in the callback"
        )
    inputs = _arguments(pl_module.example_input_array, device)
    is_forward_own = type(pl_module).forward is not LightningModule.forward
    return _seen_by(network, pl_module, inputs) if is_forward_own and network is not pl_module else inputs


def _arguments(example: Any, device: torch.device) -> Inputs:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = {str(key): value for key, value in example.items()}
    elif isinstance(example, Sequence):
        args = tuple(example)
    else:
        args = (example,)
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise ValueError(f"an example needs at least one tensor, got {type(example).__name__}")
    moved = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    small: Inputs = first_rows(moved)
    return small


def _seen_by(network: nn.Module, pl_module: LightningModule, inputs: Inputs) -> Inputs:
    modes = {module: module.training for module in pl_module.modules()}
    watched = ExampleInputs()
    watched.watch(network)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            pl_module.eval()(*inputs[0], **inputs[1])
    finally:
        watched.release()
        for module, mode in modes.items():
            module.training = mode
    if not watched:
        raise ValueError(
            "forward of the LightningModule does not call the network; set example in the callback to "
            "what the network itself takes"
        )
    return watched.args, watched.kwargs
