"""Example inputs of the network, before any data is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_optim.surgery.example import FirstCall, first_rows
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.torch_private import pytree


def network_inputs(pl_module: LightningModule, network: nn.Module, example: Any = None) -> Inputs:
    """Return the network's arguments for a small batch, on its device.

    Args:
        pl_module: The module; its ``example_input_array`` is passed to its ``forward``, and what reaches the network is
            taken.
        network: The network.
        example: The network's own inputs, taken instead: a tensor, a sequence of arguments, or a mapping of
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
    inputs = Inputs.of(list(example) if isinstance(example, Sequence) else example)  # such as a ListConfig
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((inputs.args, inputs.kwargs))):
        raise ValueError(f"an example needs at least one tensor, got {type(example).__name__}")
    given = (inputs.args, inputs.kwargs)
    moved = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, given)
    return Inputs(*first_rows(moved))


def _seen_by(network: nn.Module, pl_module: LightningModule, inputs: Inputs) -> Inputs:
    watched = FirstCall()
    watched.watch(network)
    try:
        with evaluating(pl_module), torch.random.fork_rng(devices=[]):
            pl_module(*inputs.args, **inputs.kwargs)
    finally:
        watched.release()
    if not watched:
        raise ValueError(
            "forward of the LightningModule does not call the network; set example in the callback to "
            "what the network itself takes"
        )
    return Inputs(watched.args, watched.kwargs)
