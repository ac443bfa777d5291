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

    The last state that was good enough is then put back, and a sparsity halfway between its own and the one that was
    too much is tried next, and so on. Each is judged by one validation: if something else makes the metric fall, such
    as a high learning rate, that counts as an effect of pruning.

    Args:
        monitor: Name of a metric that validation logs.
        max_drop: How far the metric may fall, at least 0, in its own unit; for ``mode="min"``, how far it may rise.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is.
        patience: Validations in a row that may lie beyond it before it is given up, at least 0; meanwhile nothing more
            goes.
        reference: The metric's value before pruning; ``None`` takes that of the last validation before the first step.
        tolerance: When the lowest sparsity that was too much and the last that was good are no further apart than this,
            in ``(0, 1]``, no more is tried; 1 never tries again.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> watch = MetricDrop(monitor="val/accuracy", max_drop=0.02).start()
        >>> watch.note(0.90)
        >>> [watch.judge(value).value for value in (0.91, 0.88, 0.87)]
        ['good', 'good', 'back']
    """

    monitor: str
    max_drop: float
    mode: Literal["max", "min"] = "max"
    patience: int = 0
    reference: float | None = None
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_drop < math.inf:
            raise ValueError(f"max_drop must be a finite number of at least 0, got {self.max_drop}")
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {self.mode!r}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0, got {self.patience}")
        if self.reference is not None and not math.isfinite(self.reference):
            raise ValueError(f"reference must be a finite number, got {self.reference}")
        if not 0.0 < self.tolerance <= 1.0:
            raise ValueError(f"tolerance must be in (0, 1], got {self.tolerance}")

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

    @property
    def is_ready(self) -> bool:
        """Whether it is known what the metric was before pruning."""
        return self._reference is not None

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

    def judge(self, value: float) -> Verdict:
        """Say whether the metric of a pruned model is good enough; what is not a number is not."""
        assert self._reference is not None, "judged before there was a reference"
        drop = self._reference - value if self._setting.mode == "max" else value - self._reference
        if drop <= self._setting.max_drop + _ROUNDING * max(1.0, abs(self._reference)):
            self._strikes = 0
            return Verdict.GOOD
        self._strikes += 1
        if self._strikes <= self._setting.patience:
            return Verdict.REST
        self._strikes = 0
        return Verdict.BACK

    def state_dict(self) -> dict[str, Any]:
        """The reference and the validations in a row that lay beyond."""
        return {"reference": self._reference, "strikes": self._strikes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._reference, self._strikes = state["reference"], state["strikes"]
