"""A simulated network as one graph, for whoever compiles it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_optim.errors import TracingError
from lightning_optim.quantization.quantizer.learner import Start
from lightning_optim.quantization.simulation.learned_values import LearnedValues
from lightning_optim.quantization.simulation.module_path import module_names, name_below
from lightning_optim.quantization.simulation.operator_names import OperatorNames
from lightning_optim.quantization.simulation.plan import Record
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.select import plain_name
from lightning_optim.surgery.torch_private import FakeTensorMode, pytree

_ATTRIBUTES: dict[Any, str] = {  # as torch 2.14 captures what the simulation in Python meets as an attribute
    torch.ops.aten.numpy_T: "T",
    torch.ops.aten.mT: "mT",
    torch.ops.aten.matrix_H: "H",
    torch.ops.aten.mH: "mH",
}
_CALLED_AGAIN = re.compile(r"@\d+$")


@final
class Recorder(TorchFunctionMode):
    """Writes every torch function that runs while it is entered into a graph, with the tensors that it takes.

    Functions that tell something of a tensor leave nothing: it holds for every tensor of its shape. Those that return
    nothing at all are refused.

    Args:
        root: Holds the tensors that the graph finds besides its inputs.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self._root = root
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}  # the tensor is kept, so that its identity stays its own

    def add_input(self, name: str, *values: Any) -> None:
        """Add an input to the graph; each of the values stands for it."""
        node = self.graph.placeholder(name)
        for value in values:
            self._bind(value, node)

    def node_of(self, value: Any) -> Argument:
        """What stands for a value in the graph; tensors that nothing made become the root's."""
        return pytree.tree_map_only(Tensor, self._find, value)  # type: ignore[no-any-return]  # typed as any

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if out is None:
            raise TracingError(f"{getattr(func, '__name__', func)} returns nothing, and cannot be followed")
        leaves = pytree.tree_leaves(out)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            return out
        node = self._write(func, self.node_of(args), self.node_of(kwargs or {}))
        self._bind(out, node)
        return out

    def _write(self, func: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute, such as ``T``
            attribute: Any = getattr(func, "__self__", None)
            return self.graph.call_function(getattr, (args[0], attribute.__name__))
        if getattr(Tensor, name, None) is func:
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(func, args, kwargs)

    def _bind(self, value: Any, node: fx.Node) -> None:
        if isinstance(value, Tensor):
            self._nodes[id(value)] = value, node
        elif isinstance(value, (tuple, list)):
            for place, part in enumerate(value):
                self._bind(part, self.graph.call_function(_item, (node, place)))

    def _find(self, tensor: Tensor) -> fx.Node:
        found = self._nodes.get(id(tensor))
        if found is not None:
            return found[1]
        name = f"constant_{len(self._nodes)}"
        self._root.register_buffer(name, tensor, persistent=False)
        node = self.graph.get_attr(name)
        self._nodes[id(tensor)] = tensor, node
        return node


def _item(values: Sequence[Any], place: int) -> Any:
    return values[place]


@final
class _Scales:
    """Stands in for ranges: scales and zero points are inputs of the graph, and what is observed is an output.

    Args:
        simulator: Knows the scales and the zero points that were learned, and whether ranges are observed.
        keys: Every activation that has a range, in the order of the inputs' entries.
        scales: ``[N]``.
        zero_points: ``[N]``.
    """

    def __init__(self, simulator: Simulator, keys: Sequence[str], scales: Tensor, zero_points: Tensor) -> None:
        self._simulator = simulator
        self._places = {key: place for place, key in enumerate(keys)}
        self._scales, self._zero_points = scales, zero_points
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(self, key: str, tensor: Tensor) -> None:
        """Let a tensor's range be put out, with what the same activation showed before."""
        if not self._simulator.is_observing and key in self._places:
            return
        tensor = tensor.detach()
        low, high = tensor.amin(), tensor.amax()
        if key in self.seen:
            low, high = torch.minimum(low, self.seen[key][0]), torch.maximum(high, self.seen[key][1])
        self.seen[key] = low.float(), high.float()

    def measure(self, key: str, tensor: Tensor) -> None:
        """Return no numbers."""

    def qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Scale and zero point of an activation, or ``None`` if evaluation met it first."""
        if self._simulator.is_growing and key not in self._places:
            raise NotKnownYetError(f"{key} has no range yet")
        if key not in self._places:
            return None
        learned = self._simulator.activations.learned_qparams(key, device)
        if learned is not None:
            return learned
        place = self._places[key]
        return self._scales[place], self._zero_points[place]


@final
class _NoFirstValues:
    """Stands in for what quantizers learn: in a graph, no value is the first."""

    def __init__(self, learned: LearnedValues) -> None:
        self._learned = learned

    def lacks(self, key: str) -> bool:
        """Refuse what is to be learned from this batch on."""
        if self._learned.lacks(key):
            raise NotKnownYetError(f"{key} has no values yet")
        return False

    def is_untrained(self, key: str) -> bool:
        """Whether values are not trained yet."""
        return self._learned.is_untrained(key)

    def find(self, key: str, values: Mapping[str, Start]) -> None:
        """Never called."""


@final
class NotKnownYetError(TracingError):
    """Error of a graph that training has to run uncompiled before it can be compiled."""


@final
class _GraphPath:
    """Tells names which module the nodes of a captured graph ran in, one after another."""

    def __init__(self, network: nn.Module, names: OperatorNames) -> None:
        self._names, self._stack = names, list[str]()
        self._modules = {name: known for known in module_names(network).values() for name in known}

    def follow(self, node: fx.Node) -> None:
        """Go to a node's module."""
        calls = node.meta.get("nn_module_stack") or {}  # the number of a call stands in its key
        stack = {f"{key} {path}": self._name_of(path) for key, (path, _) in calls.items()}
        shared = 0
        while shared < min(len(stack), len(self._stack)) and [*stack][shared] == self._stack[shared]:
            shared += 1
        for _ in self._stack[shared:]:
            self._names.end()
        for name in [*stack.values()][shared:]:
            known = self._modules[name]
            self._names.begin(name_below(known, self._names.call.name), known[0])
        self._stack = [*stack]

    def _name_of(self, path: str) -> str:
        root, _, name = path.partition(".")
        name = ".".join(_CALLED_AGAIN.sub("", part) for part in plain_name(name).split("."))
        if not root.startswith("L[") or name not in self._modules:
            raise TracingError(f"no module is known at {path}")
        return name


@final
class _Replay(fx.Interpreter):
    """Runs a captured graph node by node, each in its module."""

    def __init__(self, graph_module: fx.GraphModule, path: _GraphPath) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self._path = path

    @override
    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("call_function", "call_method"):
            self._path.follow(n)
        return super().run_node(n)

    @override
    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = _ATTRIBUTES.get(target)
        return super().call_function(target, args, kwargs) if name is None else getattr(args[0], name)


@final
@dataclass(frozen=True, slots=True)
class TracedGraph:
    """A graph of torch functions that computes as the integers would.

    Args:
        module: Its inputs are those of the captured graph, then the scales and the zero points of all activations, each
            ``[N]``, and what quantizers learned, flat; its outputs those of the captured graph, then the smallest and
            the largest values of what it observed, each ``[K]``, if there is any.
        observed: Names of what it observed.
        histories: Key of an activation -> how it comes about.
    """

    module: fx.GraphModule
    observed: tuple[str, ...]
    histories: Mapping[str, int]


def trace(
    captured: fx.GraphModule,
    inputs: Sequence[Any],
    simulator: Simulator,
    network: nn.Module,
    keys: Sequence[str],
    num_outputs: int,
    *,
    fold: bool = False,
) -> TracedGraph:
    """Write the simulation of a captured forward pass into a graph of its own.

    The graph runs once on tensors without values, under the placement that simulates the network in Python: both
    quantize the same tensors by the same rules.

    Args:
        captured: The plain forward pass in torch functions, as ``torch.compile`` hands it to its backend.
        inputs: Its inputs, parameters among them.
        simulator: Ready, and in the state in which the graph is to run.
        network: The network, whose parameters are among the inputs.
        keys: Every activation that has a range.
        num_outputs: How many tensors the network returns.
        fold: Whether batch norms are folded in training too.

    Raises:
        NotKnownYetError: If training meets an operator, a range or a value to learn that is not known yet.
        TracingError: If the graph does more than compute what is returned: it keeps other tensors, or switches
            gradients or precision.
    """
    assert simulator.plan is not None
    _check_effects(captured, num_outputs)
    root, record = nn.Module(), Record(simulator.plan) if simulator.is_growing else None
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    values = [fake.from_tensor(value) if isinstance(value, Tensor) else value for value in inputs]
    trained = fake.from_tensor(simulator.learned.trained)
    with simulator.learned.read_from(trained), fake, Recorder(root) as recorder:
        device = next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))
        scales, zero_points = (torch.ones(len(keys), device=device) for _ in range(2))
        for place, (value, real) in enumerate(zip(values, inputs, strict=True)):
            recorder.add_input(f"input_{place}", value, real)
        recorder.add_input("scales", scales)
        recorder.add_input("zero_points", zero_points)
        recorder.add_input("learned", trained)
        simulator.learned.refresh()
        ranges = _Scales(simulator, keys, scales, zero_points)
        names = simulator.names(record)
        learned = _NoFirstValues(simulator.learned) if network.training else None
        backend = simulator.backend(ranges, learned, fold=fold)
        with simulator.placed_at(network, names, backend, record) as placement:
            outputs = _Replay(captured, _GraphPath(network, names)).run(*values)
        outputs = placement.finish(outputs)
        ends = [torch.stack(values) for values in zip(*ranges.seen.values(), strict=True)]
        recorder.graph.output(recorder.node_of((*outputs, *ends)))
    if record is not None and not record.is_empty:
        raise NotKnownYetError("it takes a way that no batch has shown yet")
    histories = {} if record is None else record.histories
    return TracedGraph(fx.GraphModule(root, recorder.graph), tuple(ranges.seen), histories)


def _check_effects(captured: fx.GraphModule, num_outputs: int) -> None:
    """Refuse what a replay would lose: what runs for its effect alone, and tensors that are kept beside the outputs.

    The latter come as outputs of the graph too, and are not to be quantized as these are.
    """
    for node in captured.graph.nodes:
        if node.op == "output":
            kept = {id(leaf) for leaf in pytree.tree_leaves(node.args[0]) if isinstance(leaf, fx.Node)}
            if len(kept) > num_outputs:
                raise TracingError("its forward keeps tensors beside what it returns")
        elif node.op.startswith("call") and not node.users:
            leaves = pytree.tree_leaves(node.meta.get("example_value"))
            if not any(isinstance(leaf, Tensor) for leaf in leaves):
                name = getattr(node.target, "__name__", node.target)
                raise TracingError(f"{name} runs for its effect alone")
