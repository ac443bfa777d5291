"""Parameters, multiply-accumulates and bytes of a model, counted without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, a shared one counted once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> int:
    """Multiply-accumulates of one forward pass (FLOPs are twice as many).

    The count runs on a copy on the meta device: on a CPU, attention and LSTM kernels hide from the
    counter. Convolutions, linears, matrix products and attention count; norms, activations and pools do not.

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
    shadow = copy.deepcopy(model).to("meta").eval()
    to_meta = lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731  # one use, below
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(*tree_map(to_meta, args), **tree_map(to_meta, dict(kwargs or {})))
    return int(counter.get_total_flops()) // 2


def count_bytes(path: str | Path) -> int:
    """Size of a file on disk, external data files beside it not included."""
    return Path(path).stat().st_size
