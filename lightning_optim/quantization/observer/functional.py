"""Arithmetic of histograms whose bins of different ranges fit into one another, and of the ranges read off them."""

# N tensors, B bins, H = B / 2 bins of magnitudes

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NUM_BINS = 4096
"""Bins between ``-2 ** e`` and ``2 ** e``; half of them lie on either side of 0."""

_LEAST_EXPONENT = -100  # below it, a bin's width has no float32

Rounding = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Values, lowest end and highest end -> the values as integers of that range stand for them."""


def exponent_of(low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest ``e`` whose span from ``-2 ** e`` up to, not including, ``2 ** e`` holds a range.

    Args:
        low: Smallest values; any shape. What is not finite counts as 0.
        high: Largest values, shaped as ``low``.

    Returns:
        Whole numbers, shaped as ``low``.

    Example:
        >>> exponent_of(torch.tensor([-3.0, 0.0]), torch.tensor([4.0, 0.3]))
        tensor([ 3, -1])
    """
    largest = torch.maximum(low.abs(), high.abs()).nan_to_num(0.0, 0.0, 0.0)
    return torch.frexp(largest).exponent.long().clamp(min=_LEAST_EXPONENT)


def count_values(x: Tensor, exponent: Tensor) -> Tensor:
    """Count the values of a tensor in bins of equal width between ``-2 ** exponent`` and ``2 ** exponent``.

    Scaling by a power of two is exact, so that a bin holds the same values on every machine.

    Args:
        x: Values; any shape. NaN counts as 0, what lies outside goes into the outermost bin.
        exponent: A scalar, as ``exponent_of`` gives it.

    Returns:
        Whole numbers ``[B]``.

    Example:
        >>> counts = count_values(torch.tensor([-1.0, 0.0, 0.4, 0.4]), torch.tensor(1))
        >>> counts[[1024, 2048, 2457]], counts.sum()
        (tensor([1, 1, 2]), tensor(4))
    """
    half = NUM_BINS // 2
    scaled = torch.ldexp(x.detach().float().flatten(), half.bit_length() - 1 - exponent)
    places = scaled.nan_to_num_(0.0).floor_().clamp_(-half, half - 1).long().add_(half)
    counts = torch.zeros(NUM_BINS, dtype=torch.long, device=x.device)
    return counts.scatter_add_(0, places, torch.ones_like(places))  # unlike bincount, it waits for no accelerator


def widen_bins(counts: Tensor, exponent: Tensor, target: Tensor) -> Tensor:
    """Move counts to the bins of larger spans: ``2 ** (target - exponent)`` neighbours become one, exactly.

    Args:
        counts: ``[N, B]``.
        exponent: Spans of the counts, ``[N]``.
        target: Spans to go to, ``[N]``, no smaller.

    Returns:
        Counts, ``[N, B]``, that equal those which the values had given in the larger spans.

    Example:
        >>> x = torch.tensor([0.1, 0.7])
        >>> wide = widen_bins(count_values(x, torch.tensor([0]))[None], torch.tensor([0]), torch.tensor([3]))
        >>> bool((wide == count_values(x, torch.tensor([3]))).all())
        True
    """
    half = NUM_BINS // 2
    signed = torch.arange(-half, half, device=counts.device)
    shift = (target - exponent).clamp(0, NUM_BINS.bit_length())
    places = (signed >> shift.unsqueeze(1)) + half
    return torch.zeros_like(counts).scatter_add_(1, places, counts)


def bin_centers(exponent: Tensor) -> Tensor:
    """Return the middle of every bin, ``[N, B]``, for spans ``[N]``."""
    half = NUM_BINS // 2
    middles = torch.arange(-half, half, device=exponent.device, dtype=torch.float32) + 0.5
    return middles * torch.ldexp(torch.ones_like(exponent), exponent - (half.bit_length() - 1)).unsqueeze(1)


def percentile_range(counts: Tensor, exponent: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Return the range that leaves ``(100 - percentile) / 2`` percent of the values out at either end.

    Within a bin, values count as evenly spread. Half of all at either end, rather than all at one, keeps a range with
    one long tail from losing its short one.

    Args:
        counts: ``[N, B]``, each row with a value.
        exponent: Spans ``[N]``.
        percentile: Share of values to keep, in ``(0, 100]``.

    Returns:
        Lowest and highest values, ``[N]`` each.

    Example:
        >>> x = torch.arange(1000.0)
        >>> low, high = percentile_range(count_values(x, torch.tensor([10]))[None], torch.tensor([10]), 90.0)
        >>> round(low.item()), round(high.item())
        (50, 950)
    """
    tail = 0.5 * (1.0 - percentile / 100.0)
    low = _tail_end(counts, tail)
    high = -_tail_end(counts.flip(1), tail)
    step = exponent - (NUM_BINS.bit_length() - 2)
    return torch.ldexp(low.float(), step), torch.ldexp(high.float(), step)


def _tail_end(counts: Tensor, tail: float) -> Tensor:
    """Where the first ``tail`` of all values ends, in bins from 0, ``[N]``."""
    counts = counts.double()
    running = counts.cumsum(1)
    wanted = tail * running[:, -1:]
    place = torch.searchsorted(running, wanted, right=True).clamp_(max=NUM_BINS - 1)
    here = counts.gather(1, place)
    before = running.gather(1, place) - here
    inside = ((wanted - before) / here.clamp(min=1e-300)).clamp(0.0, 1.0)
    return (place - NUM_BINS // 2 + inside).squeeze(1)


def least_squares_range(
    counts: Tensor, exponent: Tensor, low: Tensor, high: Tensor, rounding: Rounding, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Return the part of a range that rounds and clips the values with the least squared error.

    Of ``[low, high] * k / num_steps`` for every ``k`` from 1 to ``num_steps``, the best; of equals the widest. A bin's
    values count as its middle.

    Args:
        counts: ``[N, B]``.
        exponent: Spans ``[N]``.
        low: Smallest values seen, ``[N]``.
        high: Largest values seen, ``[N]``.
        rounding: Rounds ``[N, B]`` values by ranges ``[N, 1]``.
        num_steps: Ranges to try.

    Returns:
        Lowest and highest values, ``[N]`` each.

    Example:
        >>> x = torch.tensor([0.1, 0.2, 0.3, 0.4] * 100 + [0.9])
        >>> row, zero = count_values(x, torch.tensor([0]))[None], torch.tensor([0])
        >>> to_half = lambda x, low, high: (x / high * 4).round().clamp(0, 4) * high / 4
        >>> _, high = least_squares_range(row, zero, torch.tensor([0.0]), torch.tensor([0.9]), to_half, 9)
        >>> round(high.item(), 2)
        0.4
    """
    centers, weights = bin_centers(exponent), counts.double()
    best_error = torch.full_like(low, torch.inf, dtype=torch.float64)
    best = torch.ones_like(low)
    for step in range(num_steps, 0, -1):
        part = step / num_steps
        rounded = rounding(centers, (low * part).unsqueeze(1), (high * part).unsqueeze(1))
        error = ((rounded - centers).double().square() * weights).sum(1)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best = torch.where(is_better, part, best)
    return low * best, high * best


def entropy_threshold(counts: Tensor, exponent: Tensor, gets_all: Tensor, num_integers: int, stride: int) -> Tensor:
    """Return the magnitude to clip at so that little information is lost: the KL divergence is least.

    The procedure of Migacz, "8-bit inference with TensorRT" (GTC 2017, slides 38-39): of the magnitudes' bins, the
    first ``i`` are kept and what lies beyond is added to the last of them (P); without it, the same bins are merged to
    as many levels as there are integers for magnitudes, and each level is spread evenly over those of its bins that
    are not empty (Q). Of all ``i``, the one with the least ``KL(P || Q)`` gives ``i + 0.5`` bin widths. The slides
    leave open what happens if the last bin is empty, where the divergence would be infinite; the last that is not
    takes its place. As in NVIDIA's pytorch-quantization, the first bin counts as the second: the zeros that a ReLU
    leaves are exact whatever the range.

    Args:
        counts: ``[N, B]``, each row with a value.
        exponent: Spans ``[N]``.
        gets_all: Whether all integers are for magnitudes, ``[N]``; otherwise half of them are for their negatives.
        num_integers: Integers in all.
        stride: Every how many bins to try; the slides try each, 1.

    Returns:
        Magnitudes, ``[N]``.
    """
    half, fewest = NUM_BINS // 2, (num_integers + 1) // 2
    num_levels = torch.where(gets_all, num_integers, fewest)
    magnitudes = (counts[:, half:] + counts[:, :half].flip(1)).double()
    magnitudes[:, 0] = magnitudes[:, 1]
    best_loss = torch.full_like(exponent, torch.inf, dtype=torch.float64)
    best = torch.full_like(exponent, half)
    for kept in range(half, fewest - 1, -stride):
        loss = _clipping_loss(magnitudes, kept, num_levels.clamp(max=kept))
        is_better = (loss < best_loss) & (num_levels <= kept)
        best_loss, best = torch.where(is_better, loss, best_loss), best.where(~is_better, kept)
    return torch.ldexp(best.float() + 0.5, exponent - (half.bit_length() - 1))


def _clipping_loss(magnitudes: Tensor, kept: int, num_levels: Tensor) -> Tensor:
    """``KL(P || Q)`` for the first ``kept`` bins, ``[N]``; infinite where Q knows nothing of what was clipped."""
    inside = magnitudes[:, :kept]
    places = torch.arange(kept, device=magnitudes.device)
    is_used = (inside > 0).double()
    last = (is_used * places).argmax(1, keepdim=True)
    reference = inside.scatter_add(1, last, magnitudes[:, kept:].sum(1, keepdim=True))
    levels = places * num_levels.unsqueeze(1) // kept
    sums, used = (torch.zeros_like(inside).scatter_add_(1, levels, part) for part in (inside, is_used))
    spread = (sums / used.clamp(min=1.0)).gather(1, levels) * is_used
    p, q = reference / reference.sum(1, keepdim=True), spread / spread.sum(1, keepdim=True).clamp(min=1e-300)
    return torch.where(p > 0, p * (p / q).log(), torch.zeros_like(p)).sum(1)
