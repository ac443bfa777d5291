"""Recalibration: batch-norm statistics of one path of a supernet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_optim.surgery.torch_private import BatchNorm


@contextmanager
def recalibrating(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Let the batches that pass inside this block, and they alone, set the batch-norm statistics.

    A supernet's running statistics mix those of all paths; judged with them, architectures rank almost at random
    (Guo et al., 2020; arXiv:1904.00420, section 3.3). Statistics become the plain average over
    the batches, each weighing the same.

    Args:
        model: Its batch norms are put into training mode, and back into the mode they had.

    Yields:
        The batch norms that follow.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1).eval()
        >>> with recalibrating(norm):
        ...     _ = norm(torch.tensor([[1.0], [3.0]])), norm(torch.tensor([[5.0], [7.0]]))
        >>> norm.running_mean, norm.training
        (tensor([4.]), False)
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
        norm.train()
    try:
        yield list(norms)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)
