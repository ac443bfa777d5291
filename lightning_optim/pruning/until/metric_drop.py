"""Metric-drop stopping rule: prune until a metric falls too far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, final

from lightning_optim.checked import checked

# Metrics arrive in single precision: a drop of exactly the allowed size may come out this much larger.
_ROUNDING = 1e-6

# Of the way from good to bad, what is tried next: half of it, or more where little was missing.
_LEAST, _MOST = 0.5, 0.9

# The slowest pace at which a schedule is followed.
_SLOWEST = 0.5


class Verdict(Enum):
    """Verdict of one validation on the model as it is."""

    GOOD = "good"  # within the allowed drop: the state to go back to
    REST = "rest"  # below, but fine-tuning is given time before more goes
    BACK = "back"  # below for too long: back to the last good state


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDrop:
    """Metric-drop rule: the sparsity grows until a metric falls too far below its value before pruning.

    1. The sparsity follows the schedule, one step between two validations. A step after which the metric lies within
       the allowed drop is good: its state is kept as the last good one. The less of that drop is left, the shorter is
       the next step, down to half of the schedule's.
    2. A step after which the metric lies below is given time: nothing more goes as long as each validation at least
       halves what is missing, in at most half of the validations that were left.
    3. A step that does not recover is too much. Training goes back to the last good state; if no more was missing than
       the allowed drop, only what was pruned since comes back, with its former values, and all else stays as trained.
       Then a sparsity between good and bad is tried: halfway, or further by how little was missing.
    4. This ends when good and bad are close, and at the latest one validation before the fit does. What is then close
       to the allowed drop is trained until the last validation, as the learning rate falls to its end. A fit never ends
       in a state that was found too bad.

    A high learning rate keeps a metric below what the same network has once the rate has fallen. So that this does not
    count as an effect of pruning, the rate falls to zero in the last batches before each validation, and then returns.
    If pruning begins with the fit, the model is validated before its first batch; one that is still to be trained needs
    a later ``window.begin``.

    Args:
        monitor: Name of a metric that validation logs.
        max_drop: How far the metric may fall, at least 0, in its own unit; for ``mode="min"``, how far it may rise.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is.
        patience: Validations in a row that may lie beyond it before it is given up, at least 0; meanwhile nothing more
            goes. ``None`` waits as long as the metric recovers, as said above.
        reference: The metric's value before pruning; ``None`` takes that of the last validation before the first step.
        tolerance: When the lowest sparsity that was too much and the last that was good are no further apart than this,
            in ``(0, 1]``, no more is tried; 1 never tries again.
        cooldown: Of the batches between two validations, the last ones in which the learning rate falls to zero, as a
            share in ``[0, 1]``; 0 leaves it alone.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> watch = MetricDrop(monitor="val/accuracy", max_drop=0.02).start()
        >>> watch.note(0.90)
        >>> [watch.judge(value).value for value in (0.91, 0.86, 0.875, 0.876)]
        ['good', 'rest', 'rest', 'back']
    """

    monitor: str
    max_drop: float
    mode: Literal["max", "min"] = "max"
    patience: int | None = None
    reference: float | None = None
    tolerance: float = 0.01
    cooldown: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_drop < math.inf:
            raise ValueError(f"max_drop must be a finite number of at least 0, got {self.max_drop}")
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {self.mode!r}")
        if self.patience is not None and self.patience < 0:
            raise ValueError(f"patience must be at least 0, or None, got {self.patience}")
        if self.reference is not None and not math.isfinite(self.reference):
            raise ValueError(f"reference must be a finite number, got {self.reference}")
        if not 0.0 < self.tolerance <= 1.0:
            raise ValueError(f"tolerance must be in (0, 1], got {self.tolerance}")
        if not 0.0 <= self.cooldown <= 1.0:
            raise ValueError(f"cooldown must be in [0, 1], got {self.cooldown}")

    def start(self) -> MetricWatch:
        """Begin to watch."""
        return MetricWatch(self)


@final
class MetricWatch:
    """State of a metric-drop rule: judges one validation after the other."""

    def __init__(self, setting: MetricDrop) -> None:
        self._setting = setting
        self._reference = setting.reference
        self._strikes = 0
        self._missing = math.inf  # at the last validation, if that was a strike
        self._most = math.inf  # strikes that a step may have, by the validations that were left for it
        self._good, self._bad = 0.0, math.inf  # drop at the last sparsity that was good, and that was too much

    @property
    def is_ready(self) -> bool:
        """Whether it is known what the metric was before pruning."""
        return self._reference is not None

    @property
    def is_close(self) -> bool:
        """Whether no more was missing at what was too much than the allowed drop."""
        return self._bad <= 2.0 * self._setting.max_drop

    @property
    def share(self) -> float:
        """How far to go from good to bad next, by a straight line through their drops."""
        span = self._bad - self._good
        straight = (self._setting.max_drop - self._good) / span if 0.0 < span < math.inf else _LEAST
        return min(max(straight, _LEAST), _MOST)

    @property
    def pace(self) -> float:
        """How fast to go on from what was good: by how much of the allowed drop is left, at least at half the speed."""
        allowed = self._setting.max_drop
        return min(max(1.0 - self._good / allowed, _SLOWEST), 1.0) if allowed else 1.0

    @property
    def allowed(self) -> float:
        """How far the metric may fall."""
        return self._setting.max_drop

    def rise(self, value: float) -> float:
        """How far a value lies above the reference, in the better direction."""
        assert self._reference is not None, "judged before there was a reference"
        return value - self._reference if self._setting.mode == "max" else self._reference - value

    def note(self, value: float) -> None:
        """Take a validation of the model before pruning as the reference; one that was given stands.

        Raises:
            ValueError: If the value is not a finite number.
        """
        if self._setting.reference is not None:
            return
        if not math.isfinite(value):
            raise ValueError(
                f"{self._setting.monitor!r} is {value} before pruning; give until.reference, or let pruning begin later"
            )
        self._reference = value

    def judge(self, value: float, validations_left: float = math.inf) -> Verdict:
        """Say whether the metric of a pruned model is good enough; what is not a number is not.

        Args:
            value: The metric.
            validations_left: How many are still to come.
        """
        drop = -self.rise(value)
        missing = drop - self._setting.max_drop
        if missing <= _ROUNDING * max(1.0, abs(self._reference or 0.0)):
            self._good = drop
            self._forget_strikes()
            return Verdict.GOOD
        if self._waits(missing, validations_left):
            self._missing = missing
            return Verdict.REST
        self._bad = drop if math.isfinite(drop) else math.inf
        self._forget_strikes()
        return Verdict.BACK

    def _waits(self, missing: float, left: float) -> bool:
        """Count a strike, and say whether the next validation is waited for."""
        self._strikes += 1
        if self._setting.patience is not None:
            return self._strikes <= self._setting.patience
        if self._strikes == 1:
            self._most = max((left + 1.0) / 2.0, 2.0)
        if left < 2.0:  # nothing else could be tried in time: the last validation says whether it recovers
            return left >= 1.0 and missing <= self._setting.max_drop
        return self._strikes < self._most and missing <= self._missing / 2.0

    def _forget_strikes(self) -> None:
        self._strikes, self._missing, self._most = 0, math.inf, math.inf

    def state_dict(self) -> dict[str, Any]:
        """The reference, the drops so far, and the validations in a row that lay beyond."""
        return {
            "reference": self._reference,
            "strikes": self._strikes,
            "missing": self._missing,
            "most": self._most,
            "good": self._good,
            "bad": self._bad,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._reference, self._strikes = state["reference"], state["strikes"]
        self._missing, self._most = state["missing"], state["most"]
        self._good, self._bad = state["good"], state["bad"]
