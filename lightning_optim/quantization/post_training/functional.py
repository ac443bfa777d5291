"""Arithmetic of post-training methods."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SMALLEST = 1e-8

Rounding = Callable[[Tensor, int], Tensor]


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


def compensated_rounding(weight: Tensor, gram: Tensor, rounding: Rounding, pinned: Tensor, damping: float) -> Tensor:
    """Round a weight column by column, each time letting the columns to come make up for the error: GPTQ.

    Frantar et al., 2022 (arXiv:2210.17323, algorithm 1 without its blocks): with the upper Cholesky factor ``U`` of
    ``(2 * X^T X + damping)^-1``, ``w_j -= (w_i - round(w_i)) / U_ii * U_ij`` for every ``j > i``.

    Args:
        weight: ``[O, I]``.
        gram: ``X^T X`` of the inputs ``[N, I]``, ``[I, I]``.
        rounding: Rounds one column ``[O, 1]``, given its place.
        pinned: Weights that stay as they are, ``[O, I]``; they must be rounded already.
        damping: Added to the diagonal, as a fraction of its mean, > 0.

    Returns:
        Rounded weights, shaped as ``weight``.
    """
    hessian = 2.0 * gram.double()
    mean = hessian.diagonal().mean().clamp(min=_SMALLEST)
    hessian = hessian + damping * mean * torch.eye(len(hessian), dtype=torch.float64, device=weight.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, rounded = weight.double(), torch.empty_like(weight)
    for place in range(weight.shape[1]):
        column = left[:, place : place + 1]
        whole = torch.where(
            pinned[:, place : place + 1], weight[:, place : place + 1], rounding(column.to(weight), place)
        )
        rounded[:, place : place + 1] = whole
        error = (column - whole.double()) / upper[place, place]
        left = left - error * upper[place]
    return rounded
