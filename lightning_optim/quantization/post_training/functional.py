"""Arithmetic of post-training methods."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1e-8


def equalizing_factors(made: Tensor, read: Tensor) -> Tensor:
    """Return what channels are divided by so that both ends have the same range: Nagel et al., 2019, eq. 11.

    ``s = sqrt(r1 * r2) / r2`` (arXiv:1906.04721, section 4.1). A channel that one end does not use keeps its scale.

    Args:
        made: Largest magnitude of the weights that make each channel, ``[C]``.
        read: Largest magnitude of the weights that read it, ``[C]``.

    Example:
        >>> equalizing_factors(torch.tensor([8.0, 1.0, 0.0]), torch.tensor([2.0, 4.0, 1.0]))
        tensor([2.0000, 0.5000, 1.0000])
    """
    factors = (made / read).sqrt()
    is_used = (made > _SMALLEST) & (read > _SMALLEST)
    return torch.where(is_used, factors, torch.ones_like(factors))


def smoothing_factors(activation: Tensor, weight: Tensor, strength: float) -> Tensor:
    """Return what channels are divided by so that weights take over some of their spread: Xiao et al., 2022, eq. 4.

    ``s = max|X| ** strength / max|W| ** (1 - strength)`` (arXiv:2211.10438). A channel that is 0 keeps its scale.

    Args:
        activation: Largest magnitude of each channel, ``[C]``.
        weight: Largest magnitude of the weights that read it, ``[C]``.
        strength: How much goes to the weights, in ``[0, 1]``.

    Example:
        >>> smoothing_factors(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 0.25]), 0.5)
        tensor([4., 2.])
    """
    factors = activation**strength / weight ** (1.0 - strength)
    is_used = (activation > _SMALLEST) & (weight > _SMALLEST)
    return torch.where(is_used, factors, torch.ones_like(factors))
