"""Copies of the student that serve as its teachers: begun, updated after its steps, and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from lightning.pytorch import Trainer
from torch import distributed, nn

from lightning_optim.callbacks.trainer.own_parameters import loss_scale_of, scale_of_step
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from lightning_optim.distillation.teacher.student_copy import StudentCopy
from lightning_optim.surgery.select import submodule


@final
class StudentCopies:
    """Copies of the student in one fit.

    A state that is loaded before the copies are there waits for them.
    """

    def __init__(self) -> None:
        self._copies: Sequence[StudentCopy] = ()
        self._waiting: list[Mapping[str, Any]] = []
        self._loss_scale: float | None = None

    def start(self, trainer: Trainer, copies: Sequence[StudentCopy]) -> None:
        """Keep the copies that the teacher of a fit is made of.

        Raises:
            ValueError: If each rank holds a part of every weight.
        """
        if copies and strategy_kind(trainer) is StrategyKind.SHARDED:
            raise ValueError(
                f"a teacher that is a copy of the student cannot be used under {strategy_name(trainer)}: each rank "
                "holds a part of every weight; use ddp, or a teacher of its own, such as Checkpoint"
            )
        self._copies, self._loss_scale, self._waiting = copies, None, []

    def begin(self, network: nn.Module) -> None:
        """Take over the student's weights, where none were loaded."""
        for copy in self._copies:
            copy.begin(network)

    @property
    def following(self) -> list[nn.Module]:
        """The copies that must have the shape of the student."""
        return [copy.module for copy in self._copies if copy.follows]

    def note_step(self, trainer: Trainer) -> None:
        """Take note that the batch ends with a step."""
        self._loss_scale = loss_scale_of(trainer)

    def end_batch(self, trainer: Trainer, network_name: str) -> None:
        """Follow the student, if its optimizer took a step; half precision lowers its scale where it skips one.

        Args:
            trainer: The trainer.
            network_name: Name of the student's network in the LightningModule.
        """
        following = [copy for copy in self._copies if copy.follows]
        if not following:
            return
        loss_scale, self._loss_scale = scale_of_step(trainer, self._loss_scale), None
        if loss_scale is None or loss_scale_of(trainer) < loss_scale:
            return
        network = submodule(trainer.lightning_module, network_name)
        for copy in following:
            copy.follow_step(network)
            for buffer in copy.buffers if trainer.world_size > 1 else ():
                distributed.broadcast(buffer, 0)

    def state_dict(self) -> list[dict[str, Any]]:
        """Weights of each copy; empty if there is none."""
        return [copy.state_dict() for copy in self._copies] or [dict(state) for state in self._waiting]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take over what ``state_dict`` returned; the state of other teachers changes nothing."""
        self._waiting = list(state)
        if len(state) == len(self._copies):
            for copy, saved in zip(self._copies, state, strict=True):
                copy.load_state_dict(saved)
