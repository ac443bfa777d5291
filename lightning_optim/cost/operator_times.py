"""Times of single operators at a few channel counts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from lightning_optim.cost.operators import TimedOperator, lengths_of
from lightning_optim.cost.prices import Channels, Grid, Term
from lightning_optim.cost.timing import time_call

_VECTOR = 16  # channels that a processor's vector units take at once


def tabulated(operator: TimedOperator, sizes: Mapping[str, int], points: int, known: dict[str, float]) -> Term:
    """Grid of an operator's times, measured at some channel counts and interpolated between them.

    With ``points=4``, an operator that reads pools of 64 and 128 channels is timed at 16, 32, 48 and 64 channels of the
    one by 32, 64, 96 and 128 of the other: 16 times. One that reads three pools or more is timed at 4 sizes, which
    shrink all of them alike.

    Args:
        operator: What is timed.
        sizes: Channels of every pool.
        points: Channel counts of each pool, at least 2.
        known: Times by ``TimedOperator.key``, so that equal calls are timed once; filled here.
    """
    pools, axes = operator.pools, lengths_of(operator.pools)
    shares = [number / points for number in range(1, points + 1)]
    if len(axes) == len(pools):
        counts = [_counts(sizes[pool], shares) for pool in pools]
        tried = [dict(zip(pools, chosen, strict=True)) for chosen in itertools.product(*counts)]
    else:
        tried = [{pool: share_in_vectors(sizes[pool], share) for pool in pools} for share in shares]
        totals = [sum(channels.values()) for channels in tried]
        tried = [channels for place, channels in enumerate(tried) if totals.index(totals[place]) == place]
        counts = [sorted(set(totals))]
    times = tuple(_time(operator, {**sizes, **channels}, known) for channels in tried)
    return Grid(operator.node.name, axes, tuple(tuple(map(float, axis)) for axis in counts), times)


def _time(operator: TimedOperator, channels: Channels, known: dict[str, float]) -> float:
    key = operator.key(channels)
    if key not in known:
        try:
            known[key] = time_call(operator.make_call(channels))
        except (RuntimeError, TypeError, KeyError, IndexError):
            # The operator refuses these lengths. The times of the whole network cover it.
            known[key] = 0.0
    return known[key]


def _counts(size: int, shares: Sequence[float]) -> list[int]:
    return sorted({share_in_vectors(size, share) for share in shares})


def share_in_vectors(size: int, share: float) -> int:
    """Number of channels that is nearest to a share of them, at least one step.

    Example:
        >>> share_in_vectors(64, 0.4), share_in_vectors(20, 0.4)
        (32, 8)
    """
    step = vector_step(size)
    return min(max(round(share * size / step), 1) * step, size)


def vector_step(size: int) -> int:
    """Channels between two sizes that are tried: a whole vector, or one where the pool has fewer than two vectors."""
    return _VECTOR if size >= 2 * _VECTOR else 1
