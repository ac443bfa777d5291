"""Deployment: which stage's file is the best one on the machine that timed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

from lightning_optim.checked import checked
from lightning_optim.report.comparison import Timings, are_timed, is_smaller, overall_gain, seconds_of
from lightning_optim.report.remarks import losses, remarks_on_times
from lightning_optim.report.result import StageResult

Aim = Literal["accuracy", "speed", "size"]

_AIMS: tuple[Aim, ...] = get_args(Aim)
_Keep = Callable[[list[StageResult]], list[StageResult]]


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Deployment: the choice of the stage whose file becomes the model.

    Speed is CPU time over all batch sizes that were timed. Two files whose times cannot be told apart are equally fast;
    then the smaller one counts, and of two equally small ones the more accurate. Accuracies are those of validation, so
    that the test's remain a test.

    Args:
        aim: ``"speed"``, ``"size"`` or ``"accuracy"``; ``"last"`` takes the last stage's file, whatever it gives.
        max_drop: Accuracy that the fastest and the smallest file may lose to the first stage's, in ``[0, 1]``.

    Raises:
        ValueError: If the aim is unknown or ``max_drop`` no fraction.

    Example:
        >>> figures = dict(test_accuracy=0.9, parameters=10, macs=10)
        >>> base = StageResult(name="base", validation_accuracy=0.93, bytes=4000, **figures)
        >>> int8 = StageResult(name="int8", validation_accuracy=0.92, bytes=1000, **figures)
        >>> Deployment().best([base, int8], {})
        {'accuracy': 'base', 'speed': 'int8', 'size': 'int8'}
    """

    aim: Aim | Literal["last"] = "speed"
    max_drop: float = 0.02

    def __post_init__(self) -> None:
        if self.aim not in (*_AIMS, "last"):
            raise ValueError(f"aim must be one of {', '.join(_AIMS)} and last, got {self.aim!r}")
        if not 0.0 <= self.max_drop <= 1.0:
            raise ValueError(f"max_drop is a fraction in [0, 1], got {self.max_drop}")

    def best(self, stages: Sequence[StageResult], timings: Timings) -> dict[str, str]:
        """Return aim -> the stage whose file serves it best."""
        return {aim: self._best(aim, stages, timings).name for aim in _AIMS}

    def chosen(self, stages: Sequence[StageResult], timings: Timings) -> str:
        """Return the stage whose file becomes the model."""
        return stages[-1].name if self.aim == "last" else self._best(self.aim, stages, timings).name

    def remarks(self, stages: Sequence[StageResult], timings: Timings) -> list[str]:
        """Return sentences: where a stage lost to an earlier one or too much accuracy, and what the times are worth."""
        return [*losses(stages, timings), *self._dropped(stages), *remarks_on_times(stages, timings)]

    def _best(self, aim: Aim, stages: Sequence[StageResult], timings: Timings) -> StageResult:
        def fastest(those: list[StageResult]) -> list[StageResult]:
            return _fastest(those, timings)

        order: dict[Aim, tuple[_Keep, ...]] = {
            "accuracy": (_most_accurate, fastest, _smallest),
            "speed": (fastest, _smallest, _most_accurate),
            "size": (_smallest, fastest, _most_accurate),
        }
        left = [stage for stage in stages if aim == "accuracy" or _drop(stages[0], stage) <= self.max_drop + 1e-9]
        for keep in order[aim]:
            left = keep(left)
        return left[-1]

    def _dropped(self, stages: Sequence[StageResult]) -> list[str]:
        drops = {stage.name: _drop(stages[0], stage) for stage in stages}
        listed = [f"{name} ({100.0 * drop:.2f})" for name, drop in drops.items() if drop > self.max_drop + 1e-9]
        if not listed:
            return []
        return [
            f"Not accurate enough to be deployed, by the {100.0 * self.max_drop:g} points of validation accuracy that "
            f"deploy.max_drop lets a file lose to {stages[0].name}: {', '.join(listed)}."
        ]


def _drop(base: StageResult, stage: StageResult) -> float:
    return base.validation_accuracy - stage.validation_accuracy


def _most_accurate(stages: list[StageResult]) -> list[StageResult]:
    best = max(stage.validation_accuracy for stage in stages)
    return [stage for stage in stages if stage.validation_accuracy == best]


def _smallest(stages: list[StageResult]) -> list[StageResult]:
    least = min(stages, key=lambda stage: stage.bytes)
    return [stage for stage in stages if not is_smaller(least, stage)]


def _fastest(stages: list[StageResult], timings: Timings) -> list[StageResult]:
    if not are_timed(timings, *stages):
        return stages
    best = min(stages, key=lambda stage: seconds_of(stage, timings))
    return [stage for stage in stages if not overall_gain(stage, best, timings).is_gain]
