"""Comparison of stages: which is faster, smaller or more accurate, as far as the measurement can tell."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from lightning_optim.cost.turns import Spread, Timing, speedup
from lightning_optim.report.result import StageResult

Timings = Mapping[str, Mapping[int, Timing]]
"""Stage -> batch size -> times of a call."""

_SAME_SIZE = 0.95  # share of another file's bytes above which a file is not smaller


def are_timed(timings: Timings, *stages: StageResult) -> bool:
    """Whether all of the stages have times."""
    return all(stage.name in timings for stage in stages)


def seconds_of(stage: StageResult, timings: Timings) -> float:
    """CPU time of a call, as the geometric mean over the batch sizes."""
    return statistics.geometric_mean(timing.cpu_ms for timing in timings[stage.name].values())


def gains(slow: StageResult, fast: StageResult, timings: Timings) -> dict[int, Spread]:
    """Batch size -> how many times faster the second stage is."""
    return {batch: speedup(timing, timings[fast.name][batch]) for batch, timing in timings[slow.name].items()}


def overall_gain(slow: StageResult, fast: StageResult, timings: Timings) -> Spread:
    """How many times faster the second stage is, as the geometric mean over the batch sizes."""
    spreads = list(gains(slow, fast, timings).values())
    return Spread(
        low=statistics.geometric_mean(spread.low for spread in spreads),
        median=statistics.geometric_mean(spread.median for spread in spreads),
        high=statistics.geometric_mean(spread.high for spread in spreads),
        is_calm=all(spread.is_calm for spread in spreads),
    )


def is_smaller(stage: StageResult, other: StageResult) -> bool:
    """Whether the file of the first is smaller by more than a few bytes."""
    return stage.bytes < _SAME_SIZE * other.bytes
