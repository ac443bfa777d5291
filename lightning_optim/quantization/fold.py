"""Batch norm as part of the layer before it."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from lightning_optim.quantization.functional import per_channel
from lightning_optim.surgery.torch_private import BatchNorm


def is_foldable(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether a module is a batch norm that keeps running statistics."""
    return isinstance(module, BatchNorm) and module.running_mean is not None


def uses_running_statistics(norm: BatchNorm) -> bool:
    """Whether the module, as it stands, normalizes with its running statistics."""
    return not norm.training and norm.track_running_stats


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of one layer that computes what a layer and its batch norm compute in evaluation.

    ``weight * gamma / sigma`` and ``beta + (bias - mean) * gamma / sigma`` with the running mean and
    ``sigma = sqrt(variance + eps)`` (Krishnamoorthi, 2018; arXiv:1806.08342, eq. 16-19); differentiable in all but the
    statistics.

    Args:
        weight: ``[O, ...]``, the output channels in front.
        bias: ``[O]`` or ``None``.
        norm: A batch norm over O channels with running statistics.

    Example:
        >>> norm = nn.BatchNorm1d(1, eps=0.0)
        >>> _ = norm.running_var.fill_(4.0)
        >>> fold_batch_norm(torch.tensor([[3.0]]), None, norm.eval())
        (tensor([[1.5000]], grad_fn=<MulBackward0>), tensor([0.], grad_fn=<AddBackward0>))
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -mean * factor if bias is None else (bias - mean) * factor
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * per_channel(factor, weight), shift
