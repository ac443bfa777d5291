"""Number format of losses: float32 at least."""

from __future__ import annotations

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
