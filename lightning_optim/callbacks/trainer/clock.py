"""Clock of a Trainer: how far its fit is, as ``window`` measures it."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer

from lightning_optim.window import Clock


def clock_of(trainer: Trainer) -> Clock:
    """Read the trainer's own counters; valid in the batch hooks of a fit.

    A step is an optimizer step. Under manual optimization, where a batch may take any number of them, it is a batch.
    """
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress  # declared as a tracker without these counts
    done = progress.current.processed
    batches = trainer.num_training_batches
    epoch = trainer.current_epoch + (done / batches if batches and not math.isinf(batches) else 0.0)
    automatic = trainer.lightning_module.automatic_optimization
    max_epochs = trainer.max_epochs
    return Clock(
        step=trainer.global_step if automatic else progress.total.processed,
        epoch=epoch,
        total_steps=float(trainer.estimated_stepping_batches),
        total_epochs=math.inf if max_epochs is None or max_epochs < 0 else float(max_epochs),
    )
