"""Training of what learns inside transfer losses, such as the projection of a hint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_optim.callbacks.trainer.own_parameters import OwnParameters
from lightning_optim.distillation.loss.base import Loss


@final
class LearnedParts:
    """Learned parts of losses: each is trained by an optimizer of its own, when the student's optimizer steps.

    They are made with the first answer of the teacher. A state that is loaded before waits for that.
    """

    def __init__(self) -> None:
        self._own: dict[str, OwnParameters] = {}
        self._waiting: dict[str, Any] = {}
        self._first: dict[str, Any] | None = {}

    def start(self, losses: Mapping[str, Loss], modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Train the modules that losses have made.

        Args:
            losses: The losses by key.
            modules: What they have made, by the same keys.
            device: Where the student is trained.
        """
        for key, module in modules.items():
            tensors = [*module.to(device).parameters()]
            self._own[key] = own = OwnParameters(tensors, losses[key].make_optimizer)
            if key in self._waiting:
                own.load_state_dict(self._waiting.pop(key))
            if self._first is not None:
                self._first[key] = own.state_dict()

    def begin(self) -> None:
        """Go back to what was made or loaded: a learning-rate finder may have been through some batches since."""
        for key, state in (self._first or {}).items():
            self._own[key].load_state_dict(state)
        self._first = None

    def note_step(self, trainer: Trainer) -> None:
        """Take note that the batch ends with a step."""
        for own in self._own.values():
            own.note_step(trainer)

    def end_batch(self, trainer: Trainer) -> None:
        """Take a step if the student's optimizer did."""
        for own in self._own.values():
            own.end_batch(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Values, gradients and optimizers by the key of the loss; empty if nothing learns."""
        return {**self._waiting, **{key: own.state_dict() for key, own in self._own.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned, now or once the parts are made."""
        self._waiting = {key: value for key, value in state.items() if key not in self._own}
        for key in state.keys() & self._own.keys():
            self._own[key].load_state_dict(state[key])
            if self._first is not None:
                self._first[key] = state[key]
