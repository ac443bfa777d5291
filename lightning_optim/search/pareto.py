"""Pareto front: the points that no other point beats, and how much of the space of scores they beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return which points are not dominated.

    A point is dominated if another is no worse in every cost and better in one. Equal points do not dominate
    each other.

    Args:
        costs: One row per point, lower is better in every column; negate what is to be large.

    Returns:
        Indices into ``costs``, ascending.

    Raises:
        ValueError: If rows differ in length or hold a NaN.

    Example:
        >>> pareto_front([(1.0, 5.0), (2.0, 2.0), (3.0, 3.0)])
        [0, 1]
    """
    if len({len(row) for row in costs}) > 1:
        raise ValueError(f"every point needs equally many costs, got {sorted({len(row) for row in costs})}")
    rows = np.array(costs, dtype=float)
    if np.isnan(rows).any():
        raise ValueError("a cost is NaN: a point that was not measured cannot be ranked")
    return [int(index) for index in np.flatnonzero(front_ranks(rows) == 0)] if len(rows) else []


def front_ranks(costs: Floats) -> NDArray[np.int64]:
    """Rank of each point: 0 on the front, 1 on the front of what remains without it, and so on.

    Fast non-dominated sorting, as its definition has it (Deb et al., 2002; doi:10.1109/4235.996017, section III-A).

    Args:
        costs: ``[N, K]``, lower is better.

    Returns:
        Ranks ``[N]``.

    Example:
        >>> front_ranks(np.array([(1.0, 5.0), (2.0, 2.0), (3.0, 3.0)])).tolist()
        [0, 0, 1]
    """
    no_worse = (costs[:, None] <= costs).all(axis=2)
    dominates = no_worse & ~no_worse.T
    ranks, left, rank = np.full(len(costs), -1), np.ones(len(costs), dtype=bool), 0
    while left.any():
        front = left & ~dominates[left].any(axis=0)
        ranks[front], rank = rank, rank + 1
        left &= ~front
    return ranks


def crowding_distances(costs: Floats) -> Floats:
    """How much room each point of a front has to its neighbours, infinite at the ends (Deb et al., section III-B).

    Args:
        costs: ``[N, K]``.

    Returns:
        Distances ``[N]``: the sum over costs of the gap between a point's neighbours, over the extent of that cost.

    Example:
        >>> crowding_distances(np.array([(0.0, 4.0), (1.0, 2.0), (4.0, 0.0)])).tolist()
        [inf, 2.0, inf]
    """
    room = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        padded = np.concatenate([[-np.inf], column[order], [np.inf]])
        extent = column[order[-1]] - column[order[0]]
        if extent > 0.0:
            room[order] += (padded[2:] - padded[:-2]) / extent
    return room


def by_front(costs: Floats) -> NDArray[np.int64]:
    """Indices of all points, best first: by the rank of their front, and within a front those with most room first.

    Args:
        costs: ``[N, K]``, lower is better; with one column it is the order of that.

    Example:
        >>> by_front(np.array([(3.0, 3.0), (2.0, 2.0), (1.0, 5.0)])).tolist()
        [1, 2, 0]
    """
    if costs.shape[1] == 1:
        return np.argsort(costs[:, 0], kind="stable")
    ranks, room = front_ranks(costs), np.zeros(len(costs))
    for rank in range(int(ranks.max(initial=-1)) + 1):
        room[ranks == rank] = crowding_distances(costs[ranks == rank])
    return np.lexsort((-room, ranks))


def hypervolume(points: Sequence[Sequence[float]] | ArrayLike, reference: Sequence[float]) -> float:
    """Volume that points dominate, above a reference (Zitzler and Thiele, 1999; doi:10.1109/4235.797969, section IV-A).

    Exact, slice by slice along the last score: quick for two scores and for small fronts of more.

    Args:
        points: One row per point, higher is better in every column.
        reference: What a point must exceed in every score to count.

    Returns:
        The volume, 0 where no point exceeds the reference.

    Raises:
        ValueError: If a point has more or fewer scores than the reference.

    Example:
        >>> hypervolume([(1.0, 3.0), (2.0, 1.0)], reference=(0.0, 0.0))
        4.0
    """
    rows = np.asarray(points, dtype=float)
    if rows.size == 0:
        return 0.0
    if rows.ndim != 2 or rows.shape[1] != len(reference):
        raise ValueError(f"points must be rows of {len(reference)} scores, as the reference has, got {rows.shape}")
    above = rows - np.asarray(reference, dtype=float)
    return _volume(above[(above > 0.0).all(axis=1)])


def _volume(rows: Floats) -> float:
    if len(rows) == 0:
        return 0.0
    if rows.shape[1] == 1:
        return float(rows.max())
    ordered = rows[np.argsort(-rows[:, -1], kind="stable")]
    depths = ordered[:, -1] - np.append(ordered[1:, -1], 0.0)
    if rows.shape[1] == 2:
        return float(np.maximum.accumulate(ordered[:, 0]) @ depths)
    slices = (_volume(ordered[: index + 1, :-1]) * float(depth) for index, depth in enumerate(depths) if depth > 0.0)
    return sum(slices)
