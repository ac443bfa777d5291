"""Non-negative least squares, for a handful of features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from lightning_optim.errors import LatencyError


def fit_factors(features: Sequence[Sequence[float]], measured: Sequence[float | None]) -> list[float]:
    """Non-negative least squares on relative errors, which gives a factor for each feature.

    Every set of features is tried on its own, so there should be few.

    Args:
        features: For each measurement, the value of each feature.
        measured: The measurements, above zero; ``None`` where there is none.

    Raises:
        LatencyError: If nothing was measured.

    Example:
        >>> fit_factors([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]], [3.0, 5.0, 9.0])
        [2.0, 1.0]
    """
    pairs = [(values, time) for values, time in zip(features, measured, strict=True) if time is not None]
    if not pairs:
        raise LatencyError("the network runs at none of the sizes that were tried, so its latency is not known")
    rows = torch.tensor([[value / time for value in values] for values, time in pairs], dtype=torch.float64)
    ones = torch.ones(len(pairs), 1, dtype=torch.float64)
    best, error = [0.0] * len(rows[0]), math.inf
    columns = range(len(rows[0]))
    for chosen in itertools.chain.from_iterable(itertools.combinations(columns, count + 1) for count in columns):
        found = torch.linalg.lstsq(rows[:, chosen], ones, driver="gelsd").solution
        missed = float((rows[:, chosen] @ found - ones).square().sum())
        if bool((found >= 0.0).all()) and missed < error - 1e-12:
            best, error = [0.0] * len(rows[0]), missed
            for column, factor in zip(chosen, found.flatten().tolist(), strict=True):
                best[column] = round(factor, 12)
    return best
