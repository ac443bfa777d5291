"""Cooldown of the learning rate before each validation."""

from __future__ import annotations

from typing import Any, final

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_optim.callbacks.trainer.validations import longest_stretch, share_before_validation, why_unforeseen


@final
class Cooldown:
    """Cooldown: optimizers step at a learning rate that falls to zero before each validation, in a straight line.

    A metric that is measured at a high learning rate lies below what the same network reaches once the rate has fallen,
    and by another amount each time. The rate is lowered while an optimizer steps, and is the user's own again after it:
    schedules, logs and checkpoints never see the lower one. Where it can never be lowered in a fit, a warning says so.

    Args:
        share: Of the batches between two validations, the last ones in which it falls, in ``[0, 1]``; 0 leaves it be.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._factor = 1.0
        self._is_checked = False
        self._handles: list[RemovableHandle] = []
        self._rates: dict[Optimizer, list[Any]] = {}

    def attach(self, trainer: Trainer) -> None:
        """Lower the rate in each step of each optimizer."""
        self.release()
        self._is_checked = not self._share
        for optimizer in trainer.optimizers if self._share else ():
            self._handles.append(optimizer.register_step_pre_hook(self._lower))
            self._handles.append(optimizer.register_step_post_hook(self._restore))

    def note_batch(self, trainer: Trainer) -> None:
        """Set the rate of the batch that begins."""
        if not self._is_checked:
            self._is_checked = True
            self._warn_if_idle(trainer)
        self._factor = min(1.0, share_before_validation(trainer) / self._share) if self._share else 1.0

    def _warn_if_idle(self, trainer: Trainer) -> None:
        """Say in the first batch of a fit if no batch of it can be trained at a lower rate."""
        why = why_unforeseen(trainer)
        advice = "validate after a number of batches (val_check_interval=100, check_val_every_n_epoch=None)"
        if why is None and longest_stretch(trainer) * self._share <= 1.0:
            why = f"only {longest_stretch(trainer):g} batches lie between two validations"
            advice = "validate less often, or raise it"
        if why is not None:
            rank_zero_warn(
                f"cooldown={self._share:g} has no effect here: the learning rate falls in the last batches before "
                f"a validation that is foreseen, but {why}; {advice}, or set cooldown=0"
            )

    def stop(self) -> None:
        """Leave the rate alone from now on."""
        self._factor = 1.0

    def release(self) -> None:
        """Take the hooks off; a rate that an interrupted step left lowered is the user's again."""
        for optimizer in [*self._rates]:
            self._restore(optimizer)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.stop()

    def _lower(self, optimizer: Optimizer, *_: Any) -> None:
        if self._factor == 1.0:
            return
        groups = [group for group in optimizer.param_groups if "lr" in group]
        self._rates[optimizer] = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * self._factor

    def _restore(self, optimizer: Optimizer, *_: Any) -> None:
        groups = [group for group in optimizer.param_groups if "lr" in group]
        for group, rate in zip(groups, self._rates.pop(optimizer, []), strict=False):
            group["lr"] = rate
