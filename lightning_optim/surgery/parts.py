"""Parts of a network that a training step calls one by one, without the network's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.select import named_modules, submodule
from lightning_optim.surgery.synthetic import PRIMITIVES
from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.surgery.torch_private import is_recomputing, pytree, uncompiled

_UNTOLD = frozenset({Tensor.device.__get__, Tensor.dtype.__get__, Tensor.requires_grad.__get__})  # type: ignore[attr-defined]  # getset descriptors
"""Attributes of a tensor that say nothing of its shape or its values."""


@final
class StepRecorder:
    """Recorder of one training step: which modules of a network ran, and which of them the step itself called.

    Args:
        network: The network.
        reads: Whether to note too which outputs of parts the step itself reads.

    Attributes:
        ran: Plain names of the modules that ran.
        calls: What the step itself called, in order: the part's plain name, and its call.
        is_whole: Whether the network's own ``forward`` was called.
        read_outside: Identities of the parts' outputs that the step itself read.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with StepRecorder(net).recording() as step:
        ...     _ = net[1](net[0](torch.ones(2, 2)).relu())
        >>> [name for name, _ in step.calls], step.is_whole
        (['0', '1'], False)
    """

    def __init__(self, network: nn.Module, *, reads: bool = False) -> None:
        self._names = {id(module): name for name, module in reversed(named_modules(network).items())}
        self._reads = reads
        self._running: list[str] = []
        self.ran: set[str] = set()
        self.calls: list[tuple[str, ModuleCall]] = []
        self.is_whole = False
        self.read_outside: set[int] = set()
        self._outputs: set[int] = set()

    @contextmanager
    def recording(self) -> Iterator[StepRecorder]:
        """Record what runs inside."""
        with ExitStack() as stack:
            for handle in (
                register_module_forward_pre_hook(self._begin),
                register_module_forward_hook(self._end, with_kwargs=True, always_call=True),
            ):
                stack.callback(handle.remove)
            if self._reads:
                stack.enter_context(_Reads(self._read))
            yield self

    def run_whole(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the network's own ``forward``: what it calls are no parts."""
        self.is_whole = True
        self._running.append("")
        try:
            return forward(*args, **kwargs)
        finally:
            self._running.pop()

    def _begin(self, module: nn.Module, _: Any) -> None:
        name = self._names.get(id(module))
        if name is not None and not is_recomputing():
            self._running.append(name)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = self._names.get(id(module))
        if name is None or not self._running or is_recomputing():
            return
        self._running.pop()
        self.ran.add(name)
        if not self._running:
            self.calls.append((name, ModuleCall(args, kwargs, output)))
            self._outputs |= _identities(output)

    def _read(self, values: Any) -> None:
        if not self._running:
            self.read_outside |= self._outputs & _identities(values)


@final
class _Reads(TorchFunctionMode):
    """Tells what every torch function is given."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        super().__init__()
        self._note = note

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _UNTOLD:
            self._note((args, kwargs))
        return func(*args, **(kwargs or {}))


Source = tuple[Any, ...]
"""Where an argument comes from: ``("input", place)``, ``("output", call, leaf)`` or ``("constant", value)``."""


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Call of one part.

    Args:
        name: Plain name of the part in the network.
        spec: Nesting of its positional and keyword arguments.
        sources: Where the leaves of the arguments come from.
    """

    name: str
    spec: pytree.TreeSpec
    sources: tuple[Source, ...]


@final
@dataclass(frozen=True, slots=True)
class PartsPlan:
    """Plan of a network in parts: who is called with whose output.

    Args:
        parts: The calls, in order.
        visible: Outputs that nothing but a part reads are hidden; these are the others, each a call and a leaf.
    """

    parts: tuple[Part, ...]
    visible: tuple[tuple[int, int], ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> PartsPlan:
        return self  # nothing in it changes

    def state_dict(self) -> dict[str, Any] | None:
        """Return the plan as primitives; ``None`` if a part is called with an object of another kind."""
        constants = [source[1] for part in self.parts for source in part.sources if source[0] == "constant"]
        if any(type(constant) not in PRIMITIVES for constant in constants):
            return None
        try:
            specs = [pytree.treespec_dumps(part.spec) for part in self.parts]
        except NotImplementedError:  # a class of the user's holds the arguments
            return None
        places = zip(self.parts, specs, strict=True)
        parts = [[part.name, spec, [list(source) for source in part.sources]] for part, spec in places]
        return {"parts": parts, "visible": [list(place) for place in self.visible]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PartsPlan:
        """Rebuild a plan from ``state_dict``."""
        parts = [
            Part(name, pytree.treespec_loads(spec), tuple(map(tuple, sources)))
            for name, spec, sources in state["parts"]
        ]
        return cls(tuple(parts), tuple((call, leaf) for call, leaf in state["visible"]))


def plan_parts(network: nn.Module, step: StepRecorder) -> tuple[PartsPlan, tuple[Tensor, ...]]:
    """Join the parts that a step called: an output that only parts read leads from one into the next.

    What the step itself reads of an output, be it its shape, must stay as it is; it ends there, and is an input of the
    parts that read it too. Parts without parameters count where they lead on to one with some.

    Args:
        network: The network.
        step: What one step called.

    Returns:
        The plan, and its inputs.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with StepRecorder(net, reads=True).recording() as step:
        ...     _ = net[1](net[0](torch.ones(2, 2)))
        >>> plan, inputs = plan_parts(net, step)
        >>> PartsNetwork(net, plan)(*inputs)[0].shape
        torch.Size([2, 1])
    """
    calls = _worth_keeping(network, step)
    ends = step.read_outside | _read_by_others(step, calls)
    made: dict[int, tuple[int, int]] = {}
    inputs: dict[int, tuple[int, Tensor]] = {}
    parts: list[Part] = []
    linked: set[tuple[int, int]] = set()

    def source(leaf: Any) -> Source:
        if not isinstance(leaf, Tensor):
            return "constant", leaf
        if id(leaf) in made and id(leaf) not in ends:
            linked.add(made[id(leaf)])
            return "output", *made[id(leaf)]
        return "input", inputs.setdefault(id(leaf), (len(inputs), leaf))[0]

    for place, (name, call) in enumerate(calls):
        leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
        parts.append(Part(name, spec, tuple(map(source, leaves))))
        made |= {id(leaf): (place, index) for index, leaf in enumerate(tensors_of(call.output))}
    visible = tuple(place for place in made.values() if place not in linked)
    return PartsPlan(tuple(parts), visible), tuple(tensor for _, tensor in inputs.values())


def part_names(network: nn.Module, step: StepRecorder) -> tuple[str, ...]:
    """Return the names of the parts that a step called, each once: those with parameters, and those between them."""
    return tuple(dict.fromkeys(name for name, _ in _worth_keeping(network, step)))


def _worth_keeping(network: nn.Module, step: StepRecorder) -> list[tuple[str, ModuleCall]]:
    """Calls of parts with parameters, and those that lead to one; of those from outside the first."""
    kept: list[tuple[str, ModuleCall]] = []
    wanted: set[int] = set()
    made = set[int]().union(*(_identities(call.output) for _, call in step.calls)) - step.read_outside
    reads = [made & _identities((call.args, call.kwargs)) for _, call in step.calls]
    starts = {name: place for place, (name, _) in reversed([*enumerate(step.calls)]) if not reads[place]}
    for place, (name, call) in reversed([*enumerate(step.calls)]):
        leads_on = bool(wanted & _identities(call.output))
        has_parameters = any(True for _ in submodule(network, name).parameters())
        if leads_on or (has_parameters and (reads[place] or place == starts[name])):
            kept.append((name, call))
            wanted |= reads[place]
    return kept[::-1]


def _read_by_others(step: StepRecorder, kept: Sequence[tuple[str, ModuleCall]]) -> set[int]:
    """Identities of what parts read that are left out, such as a loss."""
    known = {id(call) for _, call in kept}
    others = [call for _, call in step.calls if id(call) not in known]
    return _identities([(call.args, call.kwargs) for call in others])


def _identities(value: Any) -> set[int]:
    """Identities of the tensors in what a part takes or returns."""
    return set(map(id, tensors_of(value)))


@final
class PartsNetwork(nn.Module):
    """Network in parts, as one module whose forward calls the parts as a training step does.

    It holds the parts themselves, under their names in the network.

    Args:
        network: The network whose parts are called.
        plan: Who is called with whose output.
    """

    def __init__(self, network: nn.Module, plan: PartsPlan) -> None:
        super().__init__()
        self._plan = plan
        for name in sorted({part.name for part in plan.parts}, key=lambda name: name.count(".")):
            self._place(name, uncompiled(submodule(network, name)))
        self.training = network.training  # the parts keep their own modes

    def _place(self, name: str, part: nn.Module) -> None:
        holder: nn.Module = self
        *path, last = name.split(".")
        for key in path:
            if key not in holder._modules:
                holder.add_module(key, nn.Module())
            holder = holder.get_submodule(key)
        if last not in holder._modules:  # a part of a part is there already
            holder.add_module(last, part)

    @override
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[list[Any]] = []

        def value(source: Source) -> Any:
            if source[0] == "output":
                return outputs[source[1]][source[2]]
            return inputs[source[1]] if source[0] == "input" else source[1]

        for part in self._plan.parts:
            leaves = [value(source) for source in part.sources]
            args, kwargs = pytree.tree_unflatten(leaves, part.spec)
            outputs.append(tensors_of(self.get_submodule(part.name)(*args, **kwargs)))
        return tuple(outputs[call][leaf] for call, leaf in self._plan.visible)
