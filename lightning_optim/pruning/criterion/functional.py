"""Arithmetic of criteria: of weights, gradients and activations, never changed in place."""

from __future__ import annotations

import torch
from torch import Tensor


def negative_product(weight: Tensor, gradient: Tensor) -> Tensor:
    """``-w * g``, element by element: positive where a step of gradient descent moves a weight away from zero.

    Example:
        >>> negative_product(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5]))
        tensor([-1.0000,  0.5000])
    """
    return -(weight * gradient)


def squared_product(weight: Tensor, gradient: Tensor) -> Tensor:
    """``(w * g) ** 2``, element by element: the squared change of the loss, to first order, if a weight were zero.

    Example:
        >>> squared_product(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5]))
        tensor([1.0000, 0.2500])
    """
    return (weight * gradient).square()


def squared_channel_product(weight: Tensor, gradient: Tensor) -> Tensor:
    """``(sum_s w_s * g_s) ** 2`` per output channel: the squared change of the loss, to first order, if it were zero.

    Args:
        weight: ``[channels, ...]``.
        gradient: Shaped as the weight.

    Returns:
        ``[channels]``.

    Example:
        >>> squared_channel_product(torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([0.2500])
    """
    return (weight * gradient).flatten(1).sum(1).square()


def squared_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """``g ** 2``, element by element: the diagonal of the empirical Fisher matrix, one step's term.

    Example:
        >>> squared_gradient(torch.tensor([2.0]), torch.tensor([0.5]))
        tensor([0.2500])
    """
    return gradient.square()


def scale_by_input(weight: Tensor, scale: Tensor) -> Tensor:
    """``|w| * scale``, each weight by the entry of the input channel that it reads.

    Args:
        weight: ``[out, in / groups, ...]``.
        scale: ``[in]``; output channels of a grouped convolution read the inputs of their group.

    Returns:
        Shaped as the weight.

    Example:
        >>> scale_by_input(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([1.0, 0.5]))
        tensor([[1., 1.],
                [3., 2.]])
        >>> scale_by_input(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 0.5]))
        tensor([[1.0000],
                [1.5000]])
    """
    rows = scale.view(-1, weight.shape[1])
    read = rows.repeat_interleave(weight.shape[0] // len(rows), 0)
    return weight.abs() * read.view(*read.shape, *[1] * (weight.dim() - 2))


def ranks(scores: Tensor) -> Tensor:
    """Rank of each entry among all, as a fraction: the highest has 1; entries that tie share their mean rank.

    Args:
        scores: Any shape, not empty.

    Returns:
        In ``(0, 1]``, float64 (float32 does not tell 17 million ranks apart), shaped as the scores.

    Example:
        >>> ranks(torch.tensor([0.5, 9.0, 0.5, 7.0]))
        tensor([0.3750, 1.0000, 0.3750, 0.7500], dtype=torch.float64)
    """
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    places = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return torch.as_tensor((places / scores.numel())[inverse])


def ranks_in_rows(scores: Tensor) -> Tensor:
    """Rank of each entry among those of its row, as a fraction; of entries that tie, the first is the lowest.

    Args:
        scores: ``[rows, ...]``.

    Returns:
        In ``(0, 1]``, float32, shaped as the scores.

    Example:
        >>> ranks_in_rows(torch.tensor([[3.0, 9.0], [0.2, 0.1]]))
        tensor([[0.5000, 1.0000],
                [1.0000, 0.5000]])
    """
    flat = scores.flatten(1)
    order = flat.argsort(dim=1, stable=True)
    places = torch.arange(1, flat.shape[1] + 1, dtype=torch.float32, device=flat.device).expand_as(flat)
    return torch.empty_like(flat, dtype=torch.float32).scatter_(1, order, places).view_as(scores) / flat.shape[1]
