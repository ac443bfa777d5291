"""Recalibration: batch-norm statistics of one path of a supernet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

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
    norms = [*_tracking(model).values()]
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


def batch_norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the running statistics, by the names that they have in ``state_dict``."""
    norms = _tracking(model).items()
    return {f"{name}.{key}": value.clone() for name, norm in norms for key, value in norm.named_buffers(recurse=False)}


def set_batch_norm_statistics(model: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Put running statistics into the batch norms of a model that has them under the same names."""
    for name, norm in _tracking(model).items():
        for key, value in norm.named_buffers(recurse=False):
            value.copy_(statistics[f"{name}.{key}"])


def _tracking(model: nn.Module) -> dict[str, BatchNorm]:
    norms = ((name, module) for name, module in model.named_modules() if isinstance(module, BatchNorm))
    return {name: norm for name, norm in norms if norm.track_running_stats}
