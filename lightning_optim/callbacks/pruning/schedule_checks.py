"""Checks of a schedule: whether a structure can reach it, and whether a fit is long enough."""

from __future__ import annotations

import itertools
import math

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_optim.callbacks.trainer.clock import clock_after, clock_of
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


def warn_of_what_is_missing(reached: float, final: float) -> None:
    """Say at the end of a fit that was stopped before its schedule was through what it has reached.

    Args:
        reached: Sparsity that the last pruning step was asked for.
        final: Sparsity at which the schedule ends.
    """
    if reached != final:
        rank_zero_warn(
            f"the fit was stopped at a sparsity of {reached:.3g}, where the schedule ends at {final:.3g}: what a "
            "monitor holds as the best is of a model that is not pruned so far; go on from the last checkpoint, or let "
            "the window end earlier"
        )


def warn_of_early_end(trainer: Trainer, window: Window, schedule: Schedule, structure: Structure) -> None:
    """Say that a fit ends before the schedule does: it may go on from its checkpoint, or be too short by mistake."""
    total = clock_of(trainer).total_steps
    if math.isinf(total) or (window.unit == "epoch" and math.isinf(trainer.num_training_batches)):
        return
    progress = window.progress(clock_after(trainer, math.ceil(total) - 1))
    last, final = 0.0 if progress is None else schedule(progress), schedule(1.0)
    if last == final:
        return
    end = "the end of the fit" if window.end is None else f"{window.unit} {window.end:g}"
    also = ", and shrink='end' does not come" if structure.shrink == "end" else ""
    rank_zero_warn(
        f"the window ends at {end}, after this fit's last step begins: it ends at a sparsity of {last:.3g}, where the "
        f"schedule would end at {final:.3g}{also}; let window.end come earlier, or go on later with a longer fit"
    )
