"""Arithmetic of pruning: which entries of some scores are the lowest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, distributed

_HALF = 16
_BUCKETS = 1 << _HALF
_SIGN = -0x80000000
_INFINITY = 0x7F800000
# Entries handled at a time: temporaries stay in the cache, and small beside the scores.
_PART = 1 << 20


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

    The method is an exact radix select over the bits of the scores: two counting passes of 16 bits each find the
    threshold, without sorting and without a copy. The memory that it needs beside the masks does not grow with the
    scores. Of the entries that tie at the threshold the first ones go.

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
    threshold, below, ties, ties_of_parts = _kth_lowest(scores, max(drop, 1), group)
    if drop == 0:
        return [torch.ones(score.shape, dtype=torch.bool, device=score.device) for score in scores]
    if below + ties == drop:
        return [_compare(torch.gt, score, threshold) for score in scores]
    masks = [_compare(torch.ge, score, threshold) for score in scores]
    if ties_of_parts is None:
        ties_of_parts = [int((part == threshold).count_nonzero()) for score in scores for part in _parts(score)]
    mine = torch.tensor(sum(ties_of_parts), device=device)
    _drop_ties(scores, masks, threshold, drop - below - _sum_of_lower_ranks(mine, group), ties_of_parts)
    return masks


def _compare(operator: Callable[..., Tensor], score: Tensor, threshold: float) -> Tensor:
    mask = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    for part, out in zip(_parts(score), torch.split(mask.view(-1), _PART), strict=True):
        operator(part, threshold, out=out)
    return mask


def _drop_ties(
    scores: Sequence[Tensor], masks: Sequence[Tensor], threshold: float, ties: int, ties_of_parts: Sequence[int]
) -> None:
    """Take the first ``ties`` of the entries at the threshold out of the masks."""
    parts = (part for score in scores for part in _parts(score))
    kepts = (kept for mask in masks for kept in torch.split(mask.view(-1), _PART))
    for part, kept, found in zip(parts, kepts, ties_of_parts, strict=True):
        if ties <= 0:
            return
        if found > ties:
            kept[(part == threshold).nonzero().squeeze(1)[:ties]] = False
        elif found:
            torch.gt(part, threshold, out=kept)
        ties -= found


def _kth_lowest(
    scores: Sequence[Tensor], k: int, group: distributed.ProcessGroup | None
) -> tuple[float, int, int, list[int] | None]:
    """The ``k``-th lowest entry over all tensors, from 1.

    Returns:
        Its value, the number of entries below it, of those equal to it, and of the latter in each of this rank's parts,
        where that is known at no cost.
    """
    counts = torch.zeros(_BUCKETS + 1, dtype=torch.int64, device=scores[0].device)
    for bits in _all_bits(scores):
        counts[:-1] += torch.bincount((bits >> _HALF).add_(_BUCKETS // 2), minlength=_BUCKETS)
        lowest, highest = bits.aminmax() if bits.numel() else (bits.new_zeros(()),) * 2
        counts[-1] += (lowest < -_INFINITY) | (highest > _INFINITY)
    counts = _reduce(counts, group)
    if int(counts[-1]):
        raise ValueError("a score is NaN; did training diverge?")
    bucket, below_bucket = _locate(counts[:-1], k)
    high, in_bucket = bucket - _BUCKETS // 2, int(counts[bucket])
    counts = torch.zeros(_BUCKETS, dtype=torch.int64, device=scores[0].device)
    lows: list[Tensor] = []
    for bits in _all_bits(scores):
        inside = _with_high_half(bits, high) & (_BUCKETS - 1)
        counts += torch.bincount(inside, minlength=_BUCKETS)
        if in_bucket <= _PART:
            lows.append(inside)
    counts = _reduce(counts, group)
    low, below = _locate(counts, k - below_bucket)
    ties_of_parts = [int((inside == low).count_nonzero()) for inside in lows] if in_bucket <= _PART else None
    return _float_of((high << _HALF) | low), below_bucket + below, int(counts[low]), ties_of_parts


def _parts(score: Tensor) -> Iterator[Tensor]:
    """The flat entries in order, as float32, a part at a time."""
    for part in torch.split(score.detach().reshape(-1), _PART):
        yield part.to(torch.float32)


def _all_bits(scores: Sequence[Tensor]) -> Iterator[Tensor]:
    """Int32 that compare as the float32 entries do: a negative number's magnitude counts downwards from zero."""
    for score in scores:
        for part in _parts(score):
            bits = part.view(torch.int32)
            if bits.numel() and int(bits.amin()) < 0:
                bits = torch.where(bits < 0, _SIGN - bits, bits)
            yield bits


def _with_high_half(bits: Tensor, high: int) -> Tensor:
    """The entries whose upper bits are ``high``: few, and found faster by looking at eight flags at a time."""
    whole = len(bits) // 8 * 8
    eights = ((bits[:whole] >> _HALF) == high).view(torch.int64).nonzero().squeeze(1)
    near = torch.cat([bits[:whole].view(-1, 8)[eights].flatten(), bits[whole:]])
    return near[(near >> _HALF) == high]


def _float_of(ordered: int) -> float:
    bits = _SIGN - ordered if ordered < 0 else ordered
    return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32))


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket of the ``k``-th entry, and how many entries lie in the buckets below it."""
    reached = counts.cumsum(0)
    bucket = int(torch.searchsorted(reached, k))
    return bucket, int(reached[bucket - 1]) if bucket else 0


def _sum_of_lower_ranks(mine: Tensor, group: distributed.ProcessGroup | None) -> int:
    if group is None:
        return 0
    everyone = [torch.zeros_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(everyone, mine, group=group)
    return int(sum(int(other) for other in everyone[: distributed.get_rank(group)]))


def _reduce(counts: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    if group is not None:
        distributed.all_reduce(counts, group=group)
    return counts
