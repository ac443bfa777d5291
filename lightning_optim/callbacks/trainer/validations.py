"""Validations of a fit: how far the next one is, and how many are still to come."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from lightning_optim.callbacks.trainer.clock import clock_of, timetable_of


def share_before_validation(trainer: Trainer) -> float:
    """Return which share of the batches from one validation to the next is still to come, the running one included.

    Returns:
        A value in ``(0, 1]``; 1 where it is not known when the next one comes: of data without a length, of validation
        by wall time, and in epochs that end without one.
    """
    every, done = _stretch(trainer)
    return 1.0 if math.isinf(every) else (every - done) / every


def why_unforeseen(trainer: Trainer) -> str | None:
    """Say why it is not known in any epoch of this fit when the next validation comes; ``None`` where it is."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if every is None:
        return "validation comes by wall time (val_check_interval)"
    if math.isinf(timetable_of(trainer).length if epochs is not None else every):
        return "the data have no length"
    return None


def longest_stretch(trainer: Trainer) -> float:
    """Return how many batches lie at most between two validations, where that is known."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    length = timetable_of(trainer).length
    assert every is not None, "asked where validation comes by wall time"
    return every if epochs is None or every < length else epochs * length


def validations_left(trainer: Trainer) -> float:
    """Return how many validations are still to come after the last batch; ``inf`` where that is not known."""
    now, clock = timetable_of(trainer), clock_of(trainer)
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    left = clock.total_batches - clock.batch
    if every is None or math.isinf(left) or (math.isinf(now.length) and epochs is not None):
        return math.inf
    if epochs is None:
        return (now.batch + left) // every - now.batch // every
    # Those of whole epochs from the running one's beginning on, less those of the batches that are done.
    each = now.length // min(every, now.length)
    at_end, part = divmod(now.done + left, now.length)
    due = (now.epoch + at_end) // epochs - now.epoch // epochs
    rest = part // every if (now.epoch + at_end + 1) % epochs == 0 else 0.0
    gone = now.done // min(every, now.length) if (now.epoch + 1) % epochs == 0 else 0.0
    return due * each + rest - gone


def _stretch(trainer: Trainer) -> tuple[float, float]:
    """Batches from one validation to the next, and how many of them are done."""
    now, every, epochs = timetable_of(trainer), trainer.val_check_batch, trainer.check_val_every_n_epoch
    if every is None or why_unforeseen(trainer) is not None:
        return math.inf, 0.0
    if epochs is None:
        return every, now.batch % every
    if every >= now.length:
        return epochs * now.length, (now.epoch % epochs) * now.length + now.done
    in_stretch = now.done % every
    if (now.epoch + 1) % epochs or now.length - now.done + in_stretch < every:
        return math.inf, 0.0
    return every, in_stretch
