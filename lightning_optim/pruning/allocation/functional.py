"""Arithmetic of allocations: how a sparsity becomes a number of entries per pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed


def share_out(total: int, proportions: Sequence[float], bounds: Sequence[tuple[int, int]]) -> list[int]:
    """Split ``total`` in proportion to ``proportions``, within bounds.

    What one share cannot take goes to the others by the same proportion. Whole numbers come from largest remainders,
    so that the sum is exact; of equal remainders the first one is rounded up.

    Args:
        total: What is split; brought into the range of sums that the bounds allow.
        proportions: How the shares relate to each other; above 0.
        bounds: Least and most of each share.

    Returns:
        The shares.

    Example:
        >>> share_out(8, [1.0, 3.0], [(0, 10), (0, 10)])
        [2, 6]
        >>> share_out(16, [1.0, 3.0], [(0, 10), (0, 10)])
        [6, 10]
    """
    total = min(max(total, sum(least for least, _ in bounds)), sum(most for _, most in bounds))
    exact = _bounded(_factor(total, proportions, bounds), proportions, bounds)
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def _factor(total: int, proportions: Sequence[float], bounds: Sequence[tuple[int, int]]) -> float:
    """Factor of the proportions at which the bounded shares sum to ``total``: they grow with it, so it is bisected."""
    low, high = 0.0, max(most / proportion for proportion, (_, most) in zip(proportions, bounds, strict=True))
    for _ in range(200):
        middle = 0.5 * (low + high)
        if sum(_bounded(middle, proportions, bounds)) < total:
            low = middle
        else:
            high = middle
    return high


def _bounded(factor: float, proportions: Sequence[float], bounds: Sequence[tuple[int, int]]) -> list[float]:
    return [
        min(max(factor * proportion, least), most)
        for proportion, (least, most) in zip(proportions, bounds, strict=True)
    ]


def lamp(scores: Tensor) -> Tensor:
    """Square of each score over the sum of squares of all that are not lower (Lee et al., 2021, equation 5).

    Args:
        scores: Any shape, at least 0; ``-inf`` for what has gone and ``inf`` for what must stay are in no sum.

    Returns:
        Shaped as ``scores``, in ``[0, 1]``; infinities stay.

    Example:
        >>> lamp(torch.tensor([3.0, 1.0, 2.0]))  # 9 / 9, 1 / 14, 4 / 13
        tensor([1.0000, 0.0714, 0.3077])
    """
    flat = scores.flatten()
    order = flat.argsort(descending=True, stable=True)
    squares = flat[order].double().masked_fill(flat[order].isinf(), 0.0).square()
    relative = (squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)).float()
    result = torch.empty_like(relative).index_copy_(0, order, relative)
    return torch.where(flat.isinf(), flat.float(), result).view(scores.shape)


def sum_over_ranks(
    counts: Sequence[int], scores: Mapping[str, Tensor], group: distributed.ProcessGroup | None
) -> list[int]:
    """Counts of whole pools from those of each rank's part.

    Args:
        counts: Counts of this rank's parts.
        scores: The scores that were counted; the sums are taken on their device.
        group: Process group over which each pool is sharded; ``None`` if each rank sees all of it.
    """
    total = torch.tensor(counts, device=next(iter(scores.values())).device)
    if group is not None:
        distributed.all_reduce(total, group=group)
    return [int(count) for count in total]
