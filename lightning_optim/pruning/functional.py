"""The arithmetic of pruning: which entries of some scores are the lowest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

_HALF = 16
_BUCKETS = 1 << _HALF
# Buckets of -inf and +inf among the ordered high halves: whatever lies beyond them is not a number.
_NEGATIVE_INFINITY = 0x8000 - 0x7F81
_INFINITY = 0x8000 + 0x7F80


def magnitude(weight: Tensor, p: float) -> Tensor:
    """``|w| ** p``, element by element.

    Example:
        >>> magnitude(torch.tensor([-2.0, 1.0]), p=2.0)
        tensor([4., 1.])
    """
    return weight.abs() if p == 1.0 else weight.abs() ** p


def mask_from_scores(scores: Tensor, sparsity: float) -> Tensor:
    """Keep the highest scores and mark the rest with ``False``.

    Exactly ``round(sparsity * scores.numel())`` entries are dropped, ties included, so a schedule's target is met
    to the weight.

    Args:
        scores: Importance of every entry; any shape, higher is kept.
        sparsity: Fraction to drop, in ``[0, 1)``.

    Returns:
        Boolean mask, shaped as ``scores``.

    Raises:
        ValueError: If ``sparsity`` is outside ``[0, 1)`` or a score is not a number.

    Example:
        >>> mask_from_scores(torch.tensor([[3.0, 1.0], [2.0, 0.5]]), sparsity=0.5)
        tensor([[ True, False],
                [ True, False]])
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    return drop_lowest([scores], round(sparsity * scores.numel()))[0]


def drop_lowest(scores: Sequence[Tensor], drop: int, group: distributed.ProcessGroup | None = None) -> list[Tensor]:
    """Mark the ``drop`` lowest entries over all of ``scores`` with ``False``.

    An exact radix select over the bits of the scores: two counting passes of 16 bits each find the threshold, without
    sorting and without one concatenated copy. Of the entries that tie at the threshold the first ones go.

    Args:
        scores: Tensors of any shape, compared as float32.
        drop: How many entries to drop, over all tensors (and all ranks of ``group``).
        group: Process group over which the tensors are sharded; ``None`` if each rank sees all of them.

    Returns:
        Boolean masks, shaped as ``scores``.

    Raises:
        ValueError: If a score is not a number, or fewer than ``drop`` entries exist.

    Example:
        >>> drop_lowest([torch.tensor([4.0, 1.0]), torch.tensor([2.0, 3.0])], drop=2)
        [tensor([ True, False]), tensor([False,  True])]
    """
    device = scores[0].device
    total = int(_reduce(torch.tensor(sum(score.numel() for score in scores), device=device), group))
    if not 0 <= drop <= total:
        raise ValueError(f"cannot drop {drop} of {total} entries")
    threshold, below, ties = _kth_lowest(scores, max(drop, 1), group)
    if drop == 0:
        return [torch.ones(score.shape, dtype=torch.bool, device=score.device) for score in scores]
    if below + ties == drop:
        return [score > threshold for score in scores]
    mine = torch.tensor(sum(int((score == threshold).count_nonzero()) for score in scores), device=device)
    return _split_ties(scores, threshold, drop - below - _ties_on_lower_ranks(mine, group))


def _split_ties(scores: Sequence[Tensor], threshold: float, ties: int) -> list[Tensor]:
    """Drop what lies below the threshold, and the first ``ties`` of the entries at it."""
    masks = []
    for score in scores:
        keep = (score > threshold).contiguous()
        tied = (score == threshold).flatten().nonzero().squeeze(1)
        keep.view(-1)[tied[max(ties, 0) :]] = True
        ties -= len(tied)
        masks.append(keep)
    return masks


def _kth_lowest(scores: Sequence[Tensor], k: int, group: distributed.ProcessGroup | None) -> tuple[float, int, int]:
    """The ``k``-th lowest entry over all tensors, from 1, the number of entries below it, and of those equal to it."""
    device = scores[0].device
    high = torch.zeros(_BUCKETS, dtype=torch.int64, device=device)
    for score in scores:
        high += torch.bincount((_ordered_bits(score) >> _HALF).add_(_BUCKETS // 2), minlength=_BUCKETS)
    high = _reduce(high, group)
    if int(high[:_NEGATIVE_INFINITY].sum()) or int(high[_INFINITY + 1 :].sum()):
        raise ValueError("a score is NaN; did training diverge?")
    bucket, below_bucket = _locate(high, k)
    first = (bucket - _BUCKETS // 2) << _HALF
    low = torch.zeros(_BUCKETS, dtype=torch.int64, device=device)
    for score in scores:
        bits = _ordered_bits(score)
        inside = bits[(bits >= first) & (bits <= first + _BUCKETS - 1)]
        low += torch.bincount(inside & (_BUCKETS - 1), minlength=_BUCKETS)
    value, below = _locate(_reduce(low, group), k - below_bucket)
    threshold = _float_of(first | value)
    if threshold == 0.0:  # +0 and -0 are equal, but not their bits
        counts = [[int((s < 0.0).count_nonzero()), int((s == 0.0).count_nonzero())] for s in scores]
        zeros = _reduce(torch.tensor(counts, device=device).sum(0), group).tolist()
        return 0.0, zeros[0], zeros[1]
    return threshold, below_bucket + below, int(low[value])


def _ordered_bits(score: Tensor) -> Tensor:
    """Flat int32 that compare as the float32 entries do."""
    bits = score.detach().to(torch.float32).contiguous().view(-1).view(torch.int32)
    if not bits.numel() or int(bits.min()) >= 0:
        return bits
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _float_of(ordered: int) -> float:
    bits = ordered ^ 0x7FFFFFFF if ordered < 0 else ordered
    return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32))


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket of the ``k``-th entry, and how many entries lie in the buckets below it."""
    reached = counts.cumsum(0)
    bucket = int(torch.searchsorted(reached, k))
    return bucket, int(reached[bucket - 1]) if bucket else 0


def _ties_on_lower_ranks(mine: Tensor, group: distributed.ProcessGroup | None) -> int:
    if group is None:
        return 0
    everyone = [torch.zeros_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(everyone, mine, group=group)
    return int(sum(int(ties) for ties in everyone[: distributed.get_rank(group)]))


def _reduce(counts: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    if group is not None:
        distributed.all_reduce(counts, group=group)
    return counts
