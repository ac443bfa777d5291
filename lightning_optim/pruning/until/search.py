"""Search for the highest sparsity that a metric allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from lightning_optim.pruning.until.metric_drop import Verdict
from lightning_optim.schedule.base import Schedule

# A difference of progress has a rounding error: no sparsity that is tried differs from the last one by so little.
_SAME = 1e-6


@final
class SparsitySearch:
    """Search of a sparsity: along a schedule until one is too much, then between good and bad.

    One sparsity is tried after each validation, not more, except for the schedule's last, which comes when it is due.
    While fine-tuning is given time the schedule stands still; as a metric nears the limit, it is followed more slowly.
    What is left of it when its window ends comes after the validations that follow. Once one sparsity was too much, the
    search goes on for as long as the fit does.

    Args:
        schedule: Sparsity over progress.
        tolerance: The search ends when good and bad are no further apart, above 0.

    Example:
        >>> from lightning_optim.schedule import Linear
        >>> search = SparsitySearch(Linear(end=0.8), tolerance=0.1)
        >>> search.next_sparsity(0.5, None)
        0.4
        >>> search.note_step(0.4)
        >>> search.judge(Verdict.BACK, 0.5, 0.4, good=0.0)
        >>> search.next_sparsity(0.5, 0.0)
        0.2
    """

    def __init__(self, schedule: Schedule, tolerance: float) -> None:
        self._schedule, self._tolerance = schedule, tolerance
        self._bad: float | None = None
        self._lag = 0.0  # progress by which the schedule is behind
        self._judged_at = 0.0
        self._stretch = 0.0  # progress from one validation to the next
        self._is_resting = False
        self._is_open = False  # tried, and not yet judged

    @property
    def has_failed(self) -> bool:
        """Whether any sparsity was too much."""
        return self._bad is not None

    @property
    def follows_schedule(self) -> bool:
        """Whether the schedule is followed as it stands: nothing was too much, nor came later."""
        return self._bad is None and abs(self._lag) < _SAME and not self.is_resting

    @property
    def is_resting(self) -> bool:
        """Whether fine-tuning is given time."""
        return self._is_resting

    def next_sparsity(self, progress: float, reached: float | None, share: float = 0.5) -> float | None:
        """The sparsity that the network shall have now.

        Args:
            progress: Of the window, in ``[0, 1]``.
            reached: The sparsity that there is; ``None`` before the first pruning step.
            share: Of the way from good to bad, how much is tried, in ``(0, 1)``.
        """
        is_closing = self._bad is None and self._own(progress) >= 1.0  # the window's end waits for no validation
        if self.is_resting or (self._is_open and not is_closing):
            return reached
        good = reached or 0.0
        aim = self._schedule(self._own(progress)) if self._bad is None else good + share * (self._bad - good)
        return reached if reached is not None and abs(aim - reached) < _SAME else aim

    def note_step(self, sparsity: float) -> None:
        """Note a pruning step; the next one must wait for a validation."""
        self._is_open = sparsity > 0.0

    def judge(self, verdict: Verdict, progress: float, reached: float, good: float, pace: float = 1.0) -> None:
        """Note what a validation said of the sparsity ``reached``.

        Args:
            verdict: What it said.
            progress: Of the window.
            reached: The sparsity that was judged.
            good: The last one that was good before.
            pace: How fast the schedule goes on from one that is good, in ``(0, 1]`` of its own speed.
        """
        self._is_open, self._is_resting = False, verdict is Verdict.REST
        went_by, self._judged_at = progress - self._judged_at, progress
        self._stretch = max(self._stretch, went_by)
        if verdict is Verdict.REST:
            self._lag += went_by
        elif verdict is Verdict.GOOD:
            self._lag = max(self._lag + went_by - pace * self._stretch, 0.0)
        elif reached != good:  # else it is not the last step that was too much
            self._bad = reached

    def is_over(self, progress: float, good: float) -> bool:
        """Whether nothing more will be tried after the sparsity ``good``."""
        if self._bad is not None:
            return self._bad - good <= self._tolerance + _SAME
        if self._own(progress) >= 1.0:
            return self.next_sparsity(progress, good) == good
        to_come = [self._own(progress), *(step / 100 for step in range(101) if step / 100 > self._own(progress))]
        return all(self._schedule(later) == good for later in to_come)

    def _own(self, progress: float) -> float:
        return min(max(progress - self._lag, 0.0), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What was too much, and how far the schedule has come."""
        return {
            "bad": self._bad,
            "lag": self._lag,
            "judged_at": self._judged_at,
            "stretch": self._stretch,
            "is_resting": self._is_resting,
            "is_open": self._is_open,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._bad, self._lag = state["bad"], state["lag"]
        self._judged_at, self._stretch = state["judged_at"], state["stretch"]
        self._is_resting, self._is_open = state["is_resting"], state["is_open"]
