"""Counts of a model: parameters, multiply-accumulates and bytes, without computing it where that is possible."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.torch_private import pytree


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, a shared one counted once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> int:
    """Multiply-accumulates of one forward pass (FLOPs are twice as many).

    The count runs on a copy on the meta device, since the counter does not see the CPU's attention and LSTM kernels. A
    model whose code reads values, for example to see whether anything is padded, is computed once instead, without
    these kernels. Convolutions, linears, matrix products and attention count; norms, activations and pools do not.

    Args:
        model: The model; left untouched.
        args: Example positional inputs; the batch size scales the count.
        kwargs: Example keyword inputs.

    Returns:
        MACs for the batch given.

    Example:
        >>> count_macs(nn.Linear(3, 2), (torch.ones(1, 3),))
        6
    """
    to_meta = lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731  # one use, below
    inputs = (args, dict(kwargs or {}))
    tensors = [*model.parameters(), *model.buffers()]
    if tensors and all(tensor.is_meta for tensor in tensors):
        with evaluating(model):  # there is nothing in it to be changed
            return _count(model, *pytree.tree_map(to_meta, inputs))
    try:
        return _count(copy_model(model).to("meta"), *pytree.tree_map(to_meta, inputs))
    except Exception:  # a model that reads values of a meta tensor may raise anything
        if any(parameter.is_meta for parameter in model.parameters()):
            raise
        with torch.random.fork_rng(devices=[]), _plain_kernels():
            return _count(copy_model(model), *inputs)


def _count(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Compute attention and recurrent layers by matrix products, which the counter sees."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # setting the flags of mkldnn warns about Intel GPUs
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def count_bytes(path: str | Path) -> int:
    """Size of a file on disk in bytes, without external data files beside it."""
    return Path(path).stat().st_size
