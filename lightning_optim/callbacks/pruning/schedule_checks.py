"""Checks of a schedule: whether a structure can reach it, and whether a fit is long enough."""

from __future__ import annotations

import itertools
import math

from lightning.pytorch import Trainer

from lightning_optim.callbacks.trainer.clock import clock_of
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.schedule.base import Schedule
from lightning_optim.window import Window


def check_schedule(schedule: Schedule, structure: Structure) -> None:
    """Refuse a schedule that a structure cannot keep.

    Raises:
        ValueError: If it leaves ``[0, 1)`` or what the structure can reach, or falls where channels are removed.
    """
    values = [schedule(step / 100) for step in range(101)]
    for value in values:
        if not 0.0 <= value < 1.0:
            raise ValueError(f"sparsity must be in [0, 1), but the schedule reaches {value:g}")
    # A sparsity written to three digits may lie above that of a pattern such as 1:3.
    if max(values) > structure.highest_sparsity + 1e-3:
        raise ValueError(
            f"the schedule reaches a sparsity of {max(values):g}, but {structure} ends at "
            f"{structure.highest_sparsity:g}: let it end there, or choose another pattern"
        )
    if structure.shrink != "never" and any(after < before for before, after in itertools.pairwise(values)):
        raise ValueError("channels that were removed do not come back: the schedule must not fall")


def closes_within_fit(trainer: Trainer, window: Window) -> bool:
    """Whether a window ends no later than the fit."""
    if window.end is None or window.unit == "fraction":
        return True
    clock = clock_of(trainer)
    now, total = (clock.step, clock.total_steps) if window.unit == "step" else (clock.epoch, clock.total_epochs)
    return window.end <= (now if math.isinf(total) else total)
