"""Warnings of fits that end before their schedule does."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_optim.callbacks.trainer.clock import clock_after, clock_of
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.schedule.base import Schedule
from lightning_optim.window import Window


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
