"""Placement: where a network's tensors are quantized, found while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_optim.quantization.fold import is_foldable
from lightning_optim.quantization.simulation.backend import Backend
from lightning_optim.quantization.simulation.composites import opened
from lightning_optim.quantization.simulation.deferred_activations import DeferredActivations
from lightning_optim.quantization.simulation.integer_form import is_real, upper_bound
from lightning_optim.quantization.simulation.operator_macs import operator_macs
from lightning_optim.quantization.simulation.operator_names import OperatorNames, Source
from lightning_optim.quantization.simulation.operators import INTEGER_ROLES, NO_KERNEL, CalledOperator, Role, classify
from lightning_optim.quantization.simulation.plan import OVER_TOKENS, Operator, Plan, Record
from lightning_optim.quantization.simulation.tensor_state import Stage, TensorState, TensorStates
from lightning_optim.surgery.containers import map_tensors, tensors_of
from lightning_optim.surgery.torch_private import pytree

Function = Callable[..., Any]
EXCLUDED = "left out by targets"


@final
@dataclass(slots=True)  # not frozen: that would take three times as long to make
class FunctionCall:
    """Call of a torch function in a forward pass.

    Args:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        key: Names the operator among all of the pass.
        source: That of the result.
        operator: What the function is to a quantized network.
    """

    func: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: str
    source: Source
    operator: CalledOperator

    def state(self, stage: Stage = Stage.FLOAT, key: str | None = None) -> TensorState:
        """Return the state of the result.

        Args:
            stage: How far the result is on its way to integers.
            key: Names the quantizer that serves the result; ``None`` is the operator's own.
        """
        return TensorState(self.key if key is None else key, self.key, stage, self.source)

    def run(self) -> Any:
        """Call the function as it was called."""
        return self.func(*self.args, **self.kwargs)


@final
class Placement(TorchFunctionMode):
    """Placement: sees every torch function of one forward pass, and quantizes what integer operators read.

    A weight is quantized where it is read. An activation is quantized when somebody reads it, by the quantizer of its
    producer: a ReLU or a batch norm in between belongs to the producer. What an integer operator puts out is read
    quantized by everybody, since its kernel can put out nothing else.

    Args:
        backend: Carries out what is decided here.
        plan: What an earlier, recorded pass told.
        modules: Plain name -> module of the network, to find batch norms.
        excluded: Names of the modules whose operators stay in floating point.
        names: Names of the operators; knows which module runs.
        record: Notes what the plan does not know, if given.
        states: States of tensors that other parts of the network put out, if it runs in parts.

    Example:
        A convolution, a ReLU and a linear layer, with their ranges known. The convolution reads its input and its
        weight rounded. What it puts out is pending, and so is what the ReLU makes of it: the two have one quantizer,
        that of the convolution. The linear layer then reads the ReLU's output, which is rounded at this place alone.

        >>> from lightning_optim.quantization import Affine, MinMax, Symmetric
        >>> from lightning_optim.quantization.simulation.calibration import run_calibration
        >>> from lightning_optim.quantization.simulation.simulator import Simulator
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
        >>> simulator = Simulator(Symmetric(), Affine(), MinMax())
        >>> run_calibration(simulator, net, [torch.rand(1, 1, 4, 4)])
        >>> simulator.ranges.keys
        ('0:conv2d', '0:conv2d<0', '3:linear')
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        modules: Mapping[str, nn.Module],
        excluded: frozenset[str],
        names: OperatorNames,
        record: Record | None = None,
        states: TensorStates | None = None,
    ) -> None:
        super().__init__()
        self._backend, self._plan, self._modules, self._excluded = backend, plan, modules, excluded
        self._names, self._record, self._last_key = names, record, ""
        self._activations = DeferredActivations(backend, plan, record, states)
        self._states, self._overwriting = self._activations.states, self._activations.overwriting

    @property
    def states(self) -> TensorStates:
        """States of the tensors."""
        return self._states

    def finish(self, output: Any) -> Any:
        """Quantize what leaves the network; called outside of the mode, which would see its own operators."""
        if not self._plan.recorded:  # what can't be rounded later on is refused at once
            map_tensors(lambda tensor: tensor.detach() if self._is_pending(tensor) else tensor, output)
        output = map_tensors(lambda tensor: self._activations.quantize_pending(tensor, "output"), output)
        self._overwriting.allow([*tensors_of(output), *self._overwriting.external_tensors])  # by whoever called it
        return output

    def _is_pending(self, tensor: Tensor) -> bool:
        state = self._states.get(tensor)
        return state is not None and state.is_pending

    @override
    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {key: value for key, value in kwargs.items() if key != "input"}
        in_parts = opened(func, args, kwargs)
        if in_parts is not None:
            with self:
                return in_parts(*args, **kwargs)
        operator = classify(func, args, kwargs)
        if operator.role is Role.INSPECT:
            return func(*args, **kwargs)
        call = FunctionCall(func, args, kwargs, *self._name(operator, args, kwargs), operator)
        if self._overwriting.saved_by_backward and (
            operator.is_in_place or operator.role is Role.WRITE or "out" in kwargs
        ):
            self._overwriting.allow((args[:1], kwargs.get("out")))
        note = self._why_left_out(call) or operator.why_float
        if not note:
            self._note(call, "")
        out = self._run_float(call, note) if note else _HANDLERS[operator.role](self, call)
        if self._record is not None and call.key in self._record.operators:
            self._record.count(call.key, operator_macs(operator.name, args, kwargs, out))
        return out

    def _name(self, operator: CalledOperator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Source]:
        # Counted apart: noise that is drawn in training alone must not shift the numbers of what is quantized.
        is_apart = operator.why_float and operator.role in INTEGER_ROLES
        function = f"float {operator.name}" if is_apart else operator.name
        return self._names.name(function, self._sources((*args, *kwargs.values()) if kwargs else args))

    def _sources(self, values: Iterable[Any]) -> list[Source]:
        """Return the sources of tensors; few arguments hold any deeper than in a tuple or a list."""
        found: list[Source] = []
        for value in values:
            if isinstance(value, Tensor):
                state = self._states.get(value)
                if state is not None and state.source is not None:
                    found.append(state.source)
            elif isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
                found += self._sources(value)
        return found

    def _why_left_out(self, call: FunctionCall) -> str:
        """Return why an operator that could run in integers is not to; empty otherwise."""
        if call.operator.role not in INTEGER_ROLES:
            return ""
        if self._names.call.path in self._excluded:
            return EXCLUDED
        masked = self._plan.why_masked(call.key)
        return masked or ("" if self._backend.serves(call.key) else NO_KERNEL)

    def _weighted(self, call: FunctionCall) -> Tensor:
        x, input_key = self._activations.read(call.args[0], call.key, 0)
        kwargs = dict(call.kwargs)
        weight = call.args[1] if len(call.args) > 1 else kwargs.pop("weight")
        bias = call.args[2] if len(call.args) > 2 else kwargs.pop("bias", None)
        found = self._modules.get(self._plan.norms.get(call.key, ""))
        norm = found if found is not None and is_foldable(found) else None
        is_known = call.key in self._plan.operators
        if is_known:
            weight, bias = self._backend.weight(weight, bias, call.key, input_key, norm)
        if is_known and call.operator.role is Role.LINEAR:
            out = self._backend.linear((x, weight, bias), call.key, input_key)
        else:
            out = call.func(x, weight, bias, *call.args[3:], **kwargs)
        is_normalized = norm is not None and self._backend.folds(norm)
        stage = Stage.BEFORE_NORM if is_normalized else Stage.PENDING
        self._states.set(out, call.state(stage))
        return out

    def _matmul(self, call: FunctionCall) -> Tensor:
        left, right = (self._activations.read(call.args[place], call.key, place)[0] for place in (0, 1))
        return self._produced(call, call.func(left, right, **call.kwargs))

    def _add(self, call: FunctionCall) -> Tensor:
        left, right = (self._activations.read(call.args[place], call.key, place)[0] for place in (0, 1))
        return self._produced(call, torch.add(left, right))

    def _pool(self, call: FunctionCall) -> Tensor:
        x, _ = self._activations.read(call.args[0], call.key, 0)
        return self._produced(call, self._backend.pool(call.func, x, call.args[1:], call.kwargs))

    def _concatenate(self, call: FunctionCall) -> Tensor:
        parts = [self._activations.read(part, call.key, place)[0] for place, part in enumerate(call.args[0])]
        return self._produced(call, call.func(parts, *call.args[1:], **call.kwargs))

    def _norm(self, call: FunctionCall) -> Any:
        state = self._states.get(call.args[0])
        if (
            state is None
            or state.stage is Stage.QUANTIZED
            or self._plan.norms.get(state.origin) != self._names.call.path
        ):
            is_over_tokens = state is not None and call.args[0].dim() > 2 and self._is_linear(state.origin)
            return self._run_float(call, OVER_TOKENS if is_over_tokens else NO_KERNEL)
        if state.stage is Stage.BEFORE_NORM:
            state.stage, state.origin, state.source = Stage.PENDING, call.key, call.source
            return call.args[0]
        out = call.run()
        self._states.set(out, call.state(Stage.PENDING, state.key))
        return out

    def _is_linear(self, key: str) -> bool:
        known = self._plan.operators.get(key) or (self._record and self._record.operators.get(key, (None,))[0])
        return known is not None and known.role is Role.LINEAR

    def _relu(self, call: FunctionCall) -> Any:
        state, upper = self._states.get(call.args[0]), upper_bound(call.operator.name, call.args, call.kwargs)
        if state is None or state.stage is Stage.FLOAT:
            return self._set_result(call, call.run(), call.state())
        if state.is_pending and state.origin not in self._plan.shared:
            self._activations.note_reader(state, call.key)
            if upper is None:
                return self._set_result(call, call.run(), call.state(Stage.PENDING, state.key))
            # The clip's gradient needs what is overwritten with its result.
            x = call.args[0].clone() if call.operator.is_in_place else call.args[0]
            out = self._backend.clip(x, state.key, upper)
            return self._set_result(call, out, call.state(Stage.PENDING, state.key))
        if upper is not None:
            return self._run_float(call, NO_KERNEL)  # the bound lies between two values of the grid
        out = torch.relu(self._activations.read(call.args[0], call.key, 0)[0])  # what is on the grid stays on it
        out = self._backend.moved(out, state.key)
        return self._set_result(call, out, call.state(Stage.QUANTIZED, state.key))

    def _move(self, call: FunctionCall) -> Any:
        state = self._states.get(call.args[0]) if call.args and is_real(call.args[0]) else None
        if state is None:
            return call.run()
        x, is_quantized = call.args[0], state.stage is not Stage.FLOAT
        if is_quantized:
            x, _ = self._activations.read(x, call.key, 0)
        out = call.func(x, *call.args[1:], **call.kwargs)
        is_placed = is_quantized and out is not x and "dropout" not in call.operator.name

        def place(part: Any) -> Any:
            if not is_real(part):
                return part
            part = self._backend.moved(part, state.key) if is_placed else part
            stage = Stage.QUANTIZED if is_quantized else Stage.FLOAT
            return self._set_result(call, part, call.state(stage, state.key))

        return place(out) if isinstance(out, Tensor) else pytree.tree_map(place, out)

    def _write(self, call: FunctionCall) -> Any:
        target = call.args[0]
        state = self._states.get(target) if is_real(target) else None
        if state is not None and state.is_pending:
            quantized, _ = self._activations.read(target, call.key, 0)
            self._overwriting.allow(target)
            target.copy_(quantized)
        quantize = self._activations.quantize_pending
        rest, kwargs = pytree.tree_map(lambda leaf: quantize(leaf, call.key), (call.args[1:], call.kwargs))
        self._overwriting.allow(target)
        out = call.func(target, *rest, **kwargs)
        if state is not None:
            self._states.set(target, call.state())
        return out

    def _run_float(self, call: FunctionCall, note: str) -> Any:
        self._note(call, note)
        quantize = self._activations.quantize_all_pending
        args = [quantize(value, call.key) for value in call.args]
        kwargs = {name: quantize(value, call.key) for name, value in call.kwargs.items()}
        if call.operator.is_in_place:
            # Once more: an argument that was rounded just now may share memory with the first.
            self._overwriting.allow(call.args[:1])
        out = call.func(*args, **kwargs)
        if isinstance(out, (tuple, list)):
            for part in filter(is_real, out):
                self._states.set(part, call.state(key=""))
        return self._set_result(call, out, call.state()) if is_real(out) else out

    def _produced(self, call: FunctionCall, out: Tensor) -> Tensor:
        return self._set_result(call, out, call.state(Stage.PENDING))

    def _set_result(self, call: FunctionCall, out: Tensor, state: TensorState) -> Tensor:
        """Note the state of a result, and put it where an in-place call asked for it."""
        if call.operator.is_in_place and is_real(call.args[0]) and out is not call.args[0]:
            self._overwriting.allow(call.args[0])
            out = call.args[0].copy_(out)
        self._states.set(out, state)
        return out

    def _note(self, call: FunctionCall, note: str) -> None:
        """Take note of an operator, if the plan does not know it."""
        if call.key in self._plan.operators:
            self._last_key = call.key
            return
        operator = Operator(self._names.call.path, call.operator.name, call.operator.role, note)
        if self._record is None:
            if operator.is_integer:
                self._backend.pass_unknown(call.key)
        elif not note or any(map(is_real, pytree.tree_leaves((call.args, call.kwargs)))):
            self._record.add(call.key, operator, self._last_key)
            self._last_key = call.key


# Not held by a placement, which would be freed by the garbage collector alone, and activations with it.
_HANDLERS: dict[Role, Callable[[Placement, FunctionCall], Any]] = {
    Role.CONVOLUTION: Placement._weighted,
    Role.LINEAR: Placement._weighted,
    Role.MATMUL: Placement._matmul,
    Role.ADD: Placement._add,
    Role.POOL: Placement._pool,
    Role.CONCATENATE: Placement._concatenate,
    Role.RELU: Placement._relu,
    Role.NORM: Placement._norm,
    Role.MOVE: Placement._move,
    Role.WRITE: Placement._write,
}
