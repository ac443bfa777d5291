"""Divergence of softmaxes, a block of rows at a time, with the gradient beside it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_optim.surgery.precision import computing_dtype

# Numbers in a block of rows: one part of so many, within these bounds. Few, so that its buffers are small beside the
# whole, and stay in the caches of a processor; enough that a loop over blocks costs nothing, on a GPU above all.
_PARTS, _FEWEST, _MOST_ON_CPU, _MOST_ELSEWHERE = 64, 2**16, 2**19, 2**22


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Blocks of rows that cover all of them.

    Args:
        logits: ``[rows, classes]``.
    """
    rows, classes = logits.shape
    most = _MOST_ON_CPU if logits.device.type == "cpu" else _MOST_ELSEWHERE
    numbers = min(max(logits.numel() // _PARTS, _FEWEST), most)
    size = max(numbers // max(classes, 1), 1)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def divergences(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Divergences of the student's softmax from the teacher's, and their gradients, a block of rows at a time.

    ``sum_c q(c) * (log q(c) - log p(c))``, whose gradient in the student's scaled logits is ``p - q``. Where ``q`` is
    0, nothing is added. Both are computed in float32 at least, in buffers that all blocks share.

    Args:
        student: Logits ``[rows, classes]``, with softmax ``p`` of ``student / temperature``.
        teacher: Those of the teacher, with softmax ``q``. Rows that have been given may be overwritten.
        temperature: Divides both logits.

    Yields:
        Each block, its divergences ``[rows]`` and the gradient ``[rows, classes]``, which the next block overwrites.
    """
    buffers: Tensor | None = None
    for block in row_blocks(student):
        if buffers is None:
            buffers = student.new_empty(4, *student[block].shape, dtype=computing_dtype(student.dtype))
        mine, theirs, p, q = buffers[:, : block.stop - block.start]
        my_sums = _softmax(mine.copy_(student[block]).div_(temperature), p)
        their_sums = _softmax(theirs.copy_(teacher[block]).div_(temperature), q)
        shift = their_sums - my_sums
        # 0 * inf is no number, and adds nothing here. What is wrong with a whole row is in its shift.
        terms = theirs.sub_(mine).sub_(shift.unsqueeze(-1)).mul_(q)
        rows = terms.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf).sum(-1)
        yield block, torch.where(shift.isnan(), shift, rows), p.sub_(q)


def _softmax(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Fill in the softmax of each row; return the logarithm of the sum of its exponentials."""
    torch.softmax(logits, -1, out=probabilities)
    # Over many classes, it adds exponentials one after the other: here, their sum is 1 but for few roundings.
    probabilities.div_(probabilities.sum(-1, keepdim=True))
    # The likeliest class has probability 1 / sum_c exp(logit(c) - largest logit): no exponential is computed again.
    return logits.amax(-1) - probabilities.amax(-1).log_()


def soft_target_(
    student: Tensor, teacher: Tensor, weights: Tensor, temperature: float, *, gradient: Tensor, is_masked: bool
) -> Tensor:
    """Weighted sum of divergences, times ``temperature ** 2``, and its gradient in the student's logits.

    Args:
        student: Logits ``[rows, classes]``.
        teacher: Those of the teacher.
        weights: Factor of each row.
        temperature: Divides both logits.
        gradient: Where the gradient is written; it may be one of the logits, which is then lost.
        is_masked: Whether rows with a factor of 0 may hold what is no number; their gradient is 0 in any case.
    """
    total = weights.new_zeros(())
    for block, rows, difference in divergences(student, teacher, temperature):
        weight = weights[block]
        total += torch.where(weight > 0, rows, 0.0).dot(weight)
        difference.mul_((temperature * weight).unsqueeze(-1))
        gradient[block] = difference.masked_fill_((weight == 0).unsqueeze(-1), 0.0) if is_masked else difference
    return total.mul_(temperature**2)


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
