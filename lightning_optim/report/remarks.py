"""Remarks on a run: where a later stage lost to an earlier one, and what its times are worth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from lightning_optim.cost.turns import Spread
from lightning_optim.report.comparison import Timings, are_timed, gains, is_smaller, overall_gain
from lightning_optim.report.result import StageResult
from lightning_optim.report.wording import say_bytes, say_points, say_spread

_BUSY = 0.1  # share of waiting above which the times on the clock need a word


def losses(stages: Sequence[StageResult], timings: Timings) -> list[str]:
    """Return a sentence for each stage that is slower than an earlier one, or worse and neither smaller nor faster."""
    if not are_timed(timings, *stages):
        return []
    sentences = [_loss(stages[:place], stages[place], timings) for place in range(1, len(stages))]
    return [sentence for sentence in sentences if sentence]


def remarks_on_times(stages: Sequence[StageResult], timings: Timings) -> list[str]:
    """Return what could not be decided, and whether the machine was busy."""
    if not are_timed(timings, *stages):
        return []
    return [sentence for sentence in (_undecided(stages, timings), _busy(timings)) if sentence]


def _loss(earlier: Sequence[StageResult], later: StageResult, timings: Timings) -> str:
    slower = {stage.name: _most(gains(later, stage, timings)) for stage in earlier}
    fastest = max(earlier, key=lambda stage: slower[stage.name])
    if slower[fastest.name] > 0.0:
        return _slower(fastest, later, timings)
    better = [stage for stage in earlier if _is_for_nothing(stage, later, timings)]
    if not better:
        return ""
    best = max(better, key=lambda stage: stage.validation_accuracy)
    points = say_points(later.validation_accuracy, best.validation_accuracy).lstrip("+")
    return (
        f"{later.name} lost to {best.name}: {points} points of validation accuracy less, in a file that is neither "
        "smaller nor clearly faster on this machine."
    )


def _most(found: Mapping[int, Spread]) -> float:
    """The largest clear gain at any batch size; 0 if there is none."""
    return max((gain.median for gain in found.values() if gain.is_gain), default=0.0)


def _is_for_nothing(stage: StageResult, later: StageResult, timings: Timings) -> bool:
    is_less_accurate = later.validation_accuracy < stage.validation_accuracy
    return is_less_accurate and not is_smaller(later, stage) and not overall_gain(stage, later, timings).is_gain


def _slower(best: StageResult, later: StageResult, timings: Timings) -> str:
    times = " and ".join(
        f"{gain.median:.2f} times as long at batch {batch}" for batch, gain in gains(later, best, timings).items()
    )
    points = say_points(best.validation_accuracy, later.validation_accuracy)
    return (
        f"{later.name} lost to {best.name} in speed on this machine: a call takes {times}. Its file has "
        f"{say_bytes(later.bytes)} against {say_bytes(best.bytes)}, its validation accuracy differs by {points} points."
    )


def _undecided(stages: Sequence[StageResult], timings: Timings) -> str:
    open_ones = [
        f"{stage.name} at batch {batch} ({say_spread(gain)})"
        for stage in stages[1:]
        for batch, gain in gains(stages[0], stage, timings).items()
        if not gain.is_decided
    ]
    if not open_ones:
        return ""
    return (
        f"Could not decide how many times faster than {stages[0].name} these are, since other work shared the "
        f"processor's core or the times changed by more than a tenth: {', '.join(open_ones)}. Measure again when the "
        "machine is calmer: run= and this folder."
    )


def _busy(timings: Timings) -> str:
    share = statistics.median(timing.waiting for batches in timings.values() for timing in batches.values())
    if share <= _BUSY:
        return ""
    return (
        f"The machine was busy: calls spent {share:.0%} of their time on the clock waiting for other work. CPU times "
        "and their ratios leave that out; wall times do not."
    )
