"""Number format of losses: float32 at least."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Number format to compute in: float32 for the half precisions, else the same.

    Example:
        >>> computing_dtype(torch.bfloat16), computing_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def at_least_float32(values: Tensor) -> Tensor:
    """Values in the number format to compute in.

    Example:
        >>> at_least_float32(torch.ones(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return values.to(computing_dtype(values.dtype))


def wide_in_range(values: Tensor) -> Tensor:
    """Values of float16 in float32, others as they are.

    What computes a gradient in the forward pass does so before a loss scale has multiplied it: in float16, small
    numbers would be 0 by then, and a scale of 65,536 is infinite.

    Example:
        >>> [wide_in_range(torch.ones(1, dtype=dtype)).dtype for dtype in (torch.float16, torch.bfloat16)]
        [torch.float32, torch.bfloat16]
    """
    return values.float() if values.dtype == torch.float16 else values


@contextmanager
def default_float32() -> Iterator[None]:
    """Context in which new tensors are in float32; Lightning's true half and double precision have others in a step.

    Example:
        >>> with default_float32():
        ...     torch.zeros(1).dtype
        torch.float32
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
