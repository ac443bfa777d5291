"""Pareto front: the points that no other point beats."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
    if any(math.isnan(cost) for row in costs for cost in row):
        raise ValueError("a cost is NaN: a point that was not measured cannot be ranked")
    return [index for index, row in enumerate(costs) if not any(_dominates(other, row) for other in costs)]


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
