"""Allocation by measured sensitivity: most from where the metric falls least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor, distributed
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.allocation.base import Allocation
from lightning_optim.pruning.allocation.functional import sum_over_ranks
from lightning_optim.pruning.functional import drop_lowest
from lightning_optim.pruning.sensitivity import Sensitivity, SensitivityCurve, read_sensitivity

# Where a metric does not fall at all, the smaller sparsity is still the safer one.
_SLOPE = 1e-3


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class BySensitivity(Allocation):
    """Allocation by sensitivity: every pool, if pruned alone to its share, would cost the same loss of a metric.

    Han et al., 2015; arXiv:1506.02626, section 3.1.

    The losses are those of ``lightning-optim analyze``, interpolated linearly. A pool that is gone wholly is assumed to
    cost the largest loss that was measured.

    Args:
        table: Path of an ``analyze.json``, of the network that is pruned.

    Raises:
        ArtefactError: If the file holds no table.
    """

    table: str
    _sensitivity: Sensitivity = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sensitivity", read_sensitivity(self.table))

    @override
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        sizes = sum_over_ranks([score.numel() for score in scores.values()], scores, group)
        gone = sum_over_ranks([int((score == -torch.inf).sum()) for score in scores.values()], scores, group)
        curves = [_curve_of(self._sensitivity, pool, size) for pool, size in zip(scores, sizes, strict=True)]
        drops = equal_losses(self._sensitivity, curves, round(sparsity * sum(sizes)), gone)
        return {
            pool: drop_lowest([score], drop, group)[0]
            for (pool, score), drop in zip(scores.items(), drops, strict=True)
        }


def equal_losses(table: Sensitivity, curves: Sequence[SensitivityCurve], drop: int, gone: Sequence[int]) -> list[int]:
    """How many entries each pool loses, so that each loses as much of the metric.

    Args:
        table: What was measured.
        curves: The curve of each pool.
        drop: Entries to drop over all pools; met exactly.
        gone: Entries of each pool that have gone already, and do not come back.

    Example:
        >>> curves = [SensitivityCurve(pool=pool, size=10, values=(loss,)) for pool, loss in (("a", 1.0), ("b", 0.5))]
        >>> table = Sensitivity(metric="m", mode="max", base=1.0, sparsities=(0.5,), layers=tuple(curves), groups=())
        >>> equal_losses(table, curves, drop=9, gone=[0, 0])
        [7, 2]
    """
    worst = max(max(table.losses(curve)) for curve in curves)
    scale = worst if worst > 0.0 else 1.0
    points = [0.0, *table.sparsities, 1.0]
    losses = [
        np.add([0.0, *table.losses(curve), max(worst, _SLOPE * scale)], np.multiply(_SLOPE * scale, points))
        for curve in curves
    ]

    def dropped(level: float) -> list[float]:
        pairs = zip(curves, losses, strict=True)
        return [curve.size * float(np.interp(level, loss, points)) for curve, loss in pairs]

    low, high = 0.0, 2.0 * (1.0 + _SLOPE) * scale
    for _ in range(100):  # halves the interval to nothing
        middle = (low + high) / 2.0
        low, high = (low, middle) if sum(dropped(middle)) >= drop else (middle, high)
    return _whole_numbers(dropped(high), drop, gone)


def _whole_numbers(wanted: Sequence[float], total: int, gone: Sequence[int]) -> list[int]:
    """Round so that the sum is ``total`` and no number is below what has gone: the largest remainders go up."""
    drops = [max(int(value), lost) for value, lost in zip(wanted, gone, strict=True)]
    while sum(drops) != total:
        step = 1 if sum(drops) < total else -1
        places = [place for place, drop in enumerate(drops) if step > 0 or drop > gone[place]]
        if not places:
            break  # more has gone than is asked for
        place = max(places, key=lambda place: step * (wanted[place] - drops[place]))
        drops[place] += step
    return drops


def _curve_of(table: Sensitivity, pool: str, size: int) -> SensitivityCurve:
    for curve in (*table.layers, *table.groups):
        if (curve.pool, curve.size) == (pool, size):
            return curve
    raise ValueError(
        f"the sensitivity table has no {pool!r} with {size} entries: analyze the network that is pruned, "
        "with the same targets"
    )
