"""Training of what learns beside the student: inside transfer losses, such as the projection of a hint, or a peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lightning_optim.callbacks.trainer.own_parameters import OwnParameters

MakeOptimizer = Callable[[list[Tensor]], Optimizer]


@final
class _Part:
    """One module that learns, with its optimizer."""

    def __init__(self, module: nn.Module, make_optimizer: MakeOptimizer) -> None:
        self._module = module
        trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
        self.parameters = OwnParameters(trained, make_optimizer)

    def end_batch(self, trainer: Trainer) -> None:
        self.parameters.end_batch(trainer)
        for buffer in self._module.buffers() if trainer.world_size > 1 else ():
            distributed.broadcast(buffer, 0)

    def state_dict(self) -> dict[str, Any]:
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in self._module.named_buffers()}
        return self.parameters.state_dict() | ({"buffers": buffers} if buffers else {})

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.parameters.load_state_dict(state)
        for name, buffer in self._module.named_buffers():
            buffer.copy_(state["buffers"][name])


@final
class LearnedParts:
    """Learned parts: each is trained by an optimizer of its own, when the student's optimizer steps.

    Those of losses are made with the first answer of the teacher. A state that is loaded before waits for that. Buffers
    are those of rank 0, as in data parallelism.
    """

    def __init__(self) -> None:
        self._own: dict[str, _Part] = {}
        self._waiting: dict[str, Any] = {}
        self._first: dict[str, Any] | None = {}

    def start(self, made: Mapping[str, tuple[nn.Module, MakeOptimizer]], device: torch.device) -> None:
        """Train modules.

        Args:
            made: Module and maker of its optimizer, by the key of the loss or part.
            device: Where the student is trained.
        """
        for key, (module, make_optimizer) in made.items():
            self._own[key] = own = _Part(module.to(device), make_optimizer)
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
            own.parameters.note_step(trainer)

    def end_batch(self, trainer: Trainer) -> None:
        """Take a step if the student's optimizer did."""
        for own in self._own.values():
            own.end_batch(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Values, gradients, optimizers and buffers by key; empty if nothing learns."""
        return {**self._waiting, **{key: own.state_dict() for key, own in self._own.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned, now or once the parts are made."""
        self._waiting = {key: value for key, value in state.items() if key not in self._own}
        for key in state.keys() & self._own.keys():
            self._own[key].load_state_dict(state[key])
            if self._first is not None:
                self._first[key] = state[key]
