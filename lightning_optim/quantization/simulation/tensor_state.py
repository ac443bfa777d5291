"""States of the tensors of one forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.quantization.simulation.operator_names import Source
from lightning_optim.surgery.torch_private import in_place_version


@final
class Stage(Enum):
    """Stage of a tensor on its way to integers."""

    FLOAT = auto()
    """It was given to the network, or an operator in floating point produced it."""
    BEFORE_NORM = auto()
    """As pending, and the batch norm that follows was folded into the operator: nobody else may read it."""
    PENDING = auto()
    """An integer operator produced it: whoever reads it must read it quantized."""
    QUANTIZED = auto()
    """It holds quantized values."""


@final
@dataclass(slots=True)
class TensorState:
    """State of one tensor.

    Args:
        key: Names the activation quantizer that serves the tensor; empty if its first reader's does.
        origin: Names the operator that produced this very tensor.
        stage: How far the tensor is on its way to integers.
        source: The call of a module that made the tensor, or fed what made it.
        quantized: The quantized tensor, once somebody has read it.
        version: How often the tensor had been changed in place by then.
    """

    key: str
    origin: str
    stage: Stage = Stage.FLOAT
    source: Source | None = None
    quantized: Tensor | None = None
    version: int = 0

    @property
    def is_pending(self) -> bool:
        """Whether readers need it quantized, which it is not."""
        return self.stage is Stage.PENDING or self.stage is Stage.BEFORE_NORM


@final
class TensorStates:
    """States of tensors, by identity.

    Hooks of FSDP wrap a tensor anew between two operators; it is then recognized by its memory and shape. This is safe
    only while the first tensor is kept alive: in training, where autograd keeps most of them anyway, and where alone
    those hooks run. Otherwise a state dies with its tensor.

    Args:
        rewrapped: Whether tensors may come back wrapped anew.
    """

    def __init__(self, *, rewrapped: bool) -> None:
        self.rewrapped = rewrapped
        self._states: dict[int, tuple[weakref.ref[Tensor], TensorState]] = {}
        self._places: dict[tuple[int, torch.Size], TensorState] = {}
        self._kept: list[Tensor] = []

    def set(self, tensor: Tensor, state: TensorState) -> None:
        """Note the state of a tensor; an older one is dropped."""
        identity = id(tensor)
        if self.rewrapped and torch.is_grad_enabled():
            self._kept.append(tensor)
            self._states[identity] = (weakref.ref(tensor), state)
            place = _place(tensor)
            if place is not None:
                self._places[place] = state
            return
        self._states[identity] = (weakref.ref(tensor, lambda _: self._states.pop(identity, None)), state)

    def all(self) -> list[tuple[weakref.ref[Tensor], TensorState]]:
        """Return every tensor that has a state."""
        return [*self._states.values()]

    def get(self, tensor: Tensor) -> TensorState | None:
        """Return the state of a tensor, or ``None``."""
        found = self._states.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        if not self._places:
            return None
        place = _place(tensor)
        return None if place is None else self._places.get(place)


@final
class SavedStates:
    """States of the tensors that are there before a part of a pass runs, for its second run.

    Args:
        states: Their states.
        args: Arguments of the part.
        is_detached: Whether they come back detached, so that their quantized copies don't serve them.
    """

    def __init__(self, states: TensorStates, args: Sequence[Any], *, is_detached: bool) -> None:
        self._of_args = [states.get(arg) if isinstance(arg, Tensor) else None for arg in args]
        self._of_args = [None if state is None else replace(state) for state in self._of_args]
        self._others = [(ref, replace(state)) for ref, state in states.all()]
        self._is_detached, self._rewrapped = is_detached, states.rewrapped

    def restored(self, args: Sequence[Any]) -> TensorStates:
        """Return the states as they were then.

        Args:
            args: Arguments of the second run; the tensors among them may be other objects.
        """
        states = TensorStates(rewrapped=self._rewrapped)
        alive = ((ref(), state) for ref, state in self._others)
        for tensor, state in [*alive, *zip(args, self._of_args, strict=False)]:
            if tensor is not None and state is not None:
                states.set(tensor, replace(state, quantized=None) if self._is_detached else replace(state))
        return states


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place, be it through a view; 0 where that is not counted."""
    return 0 if tensor.is_inference() else in_place_version(tensor)


def _place(tensor: Tensor) -> tuple[int, torch.Size] | None:
    if type(tensor) is not Tensor or torch.compiler.is_compiling():
        return None  # traced and sharded tensors have no memory of their own
    return tensor.data_ptr(), tensor.shape
