"""Divergence of softmaxes, a block of rows at a time, with the gradient beside it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows of a block: enough that a loop over blocks costs nothing, few enough that its buffers are small beside the whole.
_BLOCKS, _FEWEST, _MOST = 32, 16, 256


def row_blocks(rows: int) -> Iterator[slice]:
    """Blocks of rows that cover all of them."""
    size = min(max(rows // _BLOCKS, _FEWEST), _MOST)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def as_log_softmax_(logits: Tensor) -> Tensor:
    """Turn rows of logits into logarithms of their softmax, in place."""
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def divergence_(student_log: Tensor, teacher_log: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence of each row, and its gradient in the student's logits; both arguments are overwritten.

    ``sum_c q(c) * (log q(c) - log p(c))``, whose gradient is ``p - q``. Where ``q`` is 0, nothing is added.

    Args:
        student_log: ``log p``, ``[rows, classes]``.
        teacher_log: ``log q``.

    Returns:
        The divergences ``[rows]`` and the gradient ``[rows, classes]``.
    """
    difference = teacher_log - student_log
    teacher = teacher_log.exp_()
    difference.masked_fill_(teacher == 0, 0.0)
    rows = torch.linalg.vecdot(teacher, difference)
    return rows, student_log.exp_().sub_(teacher)


def row_weights(rows: int, mask: Tensor | None, reduction: str, like: Tensor) -> Tensor:
    """Factor of each row's divergence: 1, or 1 over the number of valid ones; 0 where the mask says so.

    Args:
        rows: Number of rows.
        mask: Which are valid, with as many entries; ``None``: all.
        reduction: ``"sum"`` or ``"mean"``.
        like: Gives the device and the number format.

    Raises:
        ValueError: If the mask has another number of entries.
    """
    if mask is None:
        weights = like.new_ones(rows)
    elif mask.numel() == rows:
        weights = mask.reshape(-1).to(device=like.device, dtype=torch.bool).to(like.dtype)
    else:
        raise ValueError(f"the mask has shape {list(mask.shape)}, but there are {rows} positions")
    return weights if reduction == "sum" else weights / weights.sum().clamp_min_(1.0)


def weighted_(gradient: Tensor, weights: Tensor, factor: float) -> Tensor:
    """Multiply rows of a gradient by their weights and a factor, in place; what has no weight is 0, whatever it was.

    Example:
        >>> weighted_(torch.tensor([[torch.nan], [2.0]]), torch.tensor([0.0, 0.5]), 3.0)
        tensor([[0.],
                [3.]])
    """
    return gradient.mul_((factor * weights).unsqueeze(-1)).masked_fill_((weights == 0).unsqueeze(-1), 0.0)
