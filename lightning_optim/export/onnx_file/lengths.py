"""Lengths of tensors in a capture: ``len(x)`` stays open where the first dimension of ``x`` is."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def open_lengths() -> Iterator[None]:
    """Let ``len`` of a tensor be its ``shape[0]``, which may be a symbol; Python's own makes one number of it.

    Example:
        >>> import torch
        >>> with open_lengths():
        ...     len(torch.ones(3, 2)), len([1])
        (3, 1)
    """
    plain = builtins.len

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.dim() else plain(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain
