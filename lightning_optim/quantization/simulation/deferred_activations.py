"""Deferred activations: each is quantized when an operator reads it."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from lightning_optim.quantization.simulation.backend import Backend
from lightning_optim.quantization.simulation.integer_form import is_real
from lightning_optim.quantization.simulation.overwriting import Overwriting
from lightning_optim.quantization.simulation.plan import Plan, Record
from lightning_optim.quantization.simulation.tensor_state import Stage, TensorState, TensorStates, version_of
from lightning_optim.surgery.torch_private import pytree


@final
class DeferredActivations:
    """Deferred activations of one forward pass: a tensor is quantized at its first read, and once for all readers.

    Args:
        backend: Quantizes.
        plan: Tells which operators are known, and whose very output is rounded.
        record: Notes who reads what, if given.
        states: States of tensors that other parts of the network put out.

    Attributes:
        states: States of the tensors.
        overwriting: Is to be told before a tensor is changed in place.

    Example:
        >>> from lightning_optim.quantization.simulation.backend import FloatBackend
        >>> quantized = []
        >>> plan = Plan(readers={"conv": frozenset({"linear", "add"})})
        >>> activations = DeferredActivations(FloatBackend(lambda key, tensor: quantized.append(key)), plan)
        >>> x = torch.ones(2)
        >>> activations.states.set(x, TensorState("conv", "conv", Stage.PENDING))
        >>> quantized
        []
        >>> for reader in ("linear", "add"):
        ...     _ = activations.read(x, reader, 0)
        >>> quantized
        ['conv']
    """

    def __init__(
        self, backend: Backend, plan: Plan, record: Record | None = None, states: TensorStates | None = None
    ) -> None:
        self.states, self.overwriting = states or new_states(), Overwriting()
        self._backend, self._plan, self._record = backend, plan, record

    def read(self, tensor: Tensor, reader: str, place: int) -> tuple[Tensor, str]:
        """Return a tensor as an integer operator reads it, and the key of its quantizer.

        Args:
            tensor: Any real tensor; one that no operator of the pass produced gets a quantizer of its reader's.
            reader: Key of the operator.
            place: Which of the operator's inputs the tensor is.
        """
        state = self.states.get(tensor)
        if state is None or not state.key:
            if tensor.requires_grad:
                self.overwriting.external_tensors.append(tensor)
            source = None if state is None else state.source
            state = TensorState(f"{reader}<{place}", f"{reader}<{place}", source=source)
            self.states.set(tensor, state)
        self.note_reader(state, reader)
        if self._record is not None:
            self._record.use(state.key, reader)
        if state.stage is Stage.QUANTIZED or not self._is_placed(state, reader):
            if self._record is not None and state.stage is not Stage.QUANTIZED:
                self._record.look(state.key, tensor)
            return tensor, state.key
        # A copy made without gradients does not serve a reader that needs them, nor one of values that were changed.
        lacks_grad, version = torch.is_grad_enabled() and tensor.requires_grad, version_of(tensor)
        if state.quantized is None or state.version != version or (lacks_grad and not state.quantized.requires_grad):
            if self._record is not None:
                self._record.follow(state.key, 0 if state.source is None else state.source.history)
            is_same = state.quantized is not None and state.version == version
            backend = self._backend.repeated() if is_same else self._backend  # what was seen does not count twice
            quantized = backend.activation(tensor, state.key)
            if quantized is tensor:
                state.stage = Stage.QUANTIZED
                return tensor, state.key
            state.quantized, state.version = quantized, version
            self.overwriting.note(tensor, quantized)
            self.states.set(quantized, TensorState(state.key, state.origin, Stage.QUANTIZED, state.source))
        return state.quantized, state.key

    def _is_placed(self, state: TensorState, reader: str) -> bool:
        """Whether the plan has a quantizer where somebody reads a tensor; if not, it is read as it is."""
        if not state.is_pending:
            return reader in self._plan.operators
        if state.origin in self._plan.rounded:
            return True
        if self._record is None:
            self._backend.pass_unknown(state.key)
        return False

    def quantize_pending(self, value: Any, reader: str) -> Any:
        """Return a value as an operator in floating point reads it: quantized, if it is a tensor that is pending."""
        state = self.states.get(value) if is_real(value) else None
        if state is None:
            return value
        if state.is_pending:
            return self.read(value, reader, 0)[0]
        self.note_reader(state, reader)
        return value

    def quantize_all_pending(self, value: Any, reader: str) -> Any:
        """Return an argument with every tensor in it quantized that is pending; few hold more than one tensor."""
        if isinstance(value, Tensor):
            return self.quantize_pending(value, reader)
        if isinstance(value, (list, tuple)) and all(isinstance(part, (int, float)) for part in value):
            return value
        if isinstance(value, (list, tuple, dict)):
            return pytree.tree_map(lambda leaf: self.quantize_pending(leaf, reader), value)
        return value

    def note_reader(self, state: TensorState, reader: str) -> None:
        """Note that an operator reads a tensor.

        Raises:
            RuntimeError: If the batch norm that was folded in has not come yet.
        """
        if state.stage is Stage.BEFORE_NORM:
            raise RuntimeError(
                f"{reader} reads the output of {state.origin} before its batch norm, which is folded in, since nobody "
                "did so when the operators were recorded: let calibrate() see this way through the network, or leave "
                "these layers out with targets.exclude"
            )
        if self._record is not None:
            self._record.read(state.origin, reader)


def new_states() -> TensorStates:
    """Return states of no tensor yet, as this process needs them."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return TensorStates(rewrapped=is_distributed)
