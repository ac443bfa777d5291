"""Residual branches: what is added to a value that it was computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import fx

from lightning_optim.graph.attributes import calling_modules
from lightning_optim.graph.coupling import Coupling
from lightning_optim.graph.operators import KEEP_ZERO, NORMS, WEIGHTED, kind_of, operator_name
from lightning_optim.graph.propagate import Propagation
from lightning_optim.graph.rules.base import OperatorCall


@final
@dataclass(frozen=True, slots=True)
class Branch:
    """Residual branch that adds nothing once its parameters are zero.

    Args:
        name: Name of the weight of its last layer.
        parameters: Names of all parameters that serve this branch alone; its last layer's are among them.
        modules: Names of all modules that are called in this branch alone, outer ones first.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...] = ()


def residual_branches(coupling: Coupling) -> tuple[Branch, ...]:
    """Return every residual branch that can be dropped whole, in the order of the graph.

    A sum of two values is residual if one was computed from the other. Its branch can be dropped if nothing else reads
    it midway, and if it ends in a layer whose zeros make it zero: a linear layer, a convolution or a norm
    with a weight.

    Args:
        coupling: What is known of the network's graph.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_optim.graph import capture_network
        >>> from lightning_optim.graph import couple
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        ...
        ...     def forward(self, x):
        ...         return x + self.second(self.first(x).relu())
        >>> net = nn.Sequential(nn.Linear(3, 4), Block())
        >>> [branch.name for branch in residual_branches(couple(capture_network(net, (torch.ones(2, 3),))))]
        ['1.second.weight']
    """
    propagation = coupling.propagation
    found = []
    for node in propagation.program.graph.nodes:
        if node.op == "call_function" and operator_name(node.target) in ("add", "add_"):
            branch = _branch(node, propagation)
            if branch is not None:
                found.append(branch)
    return tuple(found)


def _branch(total: fx.Node, propagation: Propagation) -> Branch | None:
    """The branch of one sum, or ``None`` if it has none that can be dropped."""
    operands = [operand for operand in total.args[:2] if isinstance(operand, fx.Node)]
    if len(operands) < 2 or len({operand.meta["val"].shape for operand in operands}) > 1:
        return None
    for end, skip in (operands, operands[::-1]):
        path = _after(skip) & _before(end)
        if path:
            closed = all(user in path or user is total for node in path for user in node.users)
            return _droppable(end, _inside(path, total), propagation) if closed else None
    return None


def _droppable(end: fx.Node, inside: set[fx.Node], propagation: Propagation) -> Branch | None:
    signature = propagation.program.graph_signature.inputs_to_parameters
    own = {node: signature[node.name] for node in inside if node.op == "placeholder" and node.name in signature}
    last = _last_layer(end, inside, propagation)
    if not last or not own.keys() >= set(last):
        return None
    return Branch(own[last[0]], tuple(sorted(own.values())), tuple(_called_in(inside, propagation)))


def _called_in(inside: set[fx.Node], propagation: Propagation) -> list[str]:
    within: dict[str, bool] = {}
    for node in propagation.program.graph.nodes:
        for name in calling_modules(node.meta):
            within[name] = within.get(name, True) and node in inside
    return sorted((name for name, is_within in within.items() if is_within), key=lambda name: (name.count("."), name))


def _last_layer(node: fx.Node, inside: set[fx.Node], propagation: Propagation) -> list[fx.Node]:
    """Weight and bias of the layer that a branch ends in; nothing if zeros there might not make the branch zero."""
    while node.op == "call_function" and node in inside:
        call, name = OperatorCall(node, propagation.axes, propagation.labels), operator_name(node.target)
        if kind_of(name) in WEIGHTED | NORMS:
            held = [call.get("weight"), call.get("bias")]
            return [tensor for tensor in held if isinstance(tensor, fx.Node)] if held[0] is not None else []
        source = call.first()
        if name not in KEEP_ZERO or not isinstance(source, fx.Node):
            return []
        node = source
    return []


def _after(start: fx.Node) -> set[fx.Node]:
    """Every node that is computed from ``start``."""
    return _reached([*start.users], lambda node: node.users)


def _before(end: fx.Node) -> set[fx.Node]:
    """Every node that ``end`` is computed from, and itself."""
    return _reached([end], lambda node: node.all_input_nodes)


def _reached(waiting: list[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += neighbours(node)
    return found


def _inside(path: set[fx.Node], total: fx.Node) -> set[fx.Node]:
    """The path, and whatever serves it alone."""
    inside = set(path)
    waiting = [source for node in path for source in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node not in inside and node is not total and all(user in inside for user in node.users):
            inside.add(node)
            waiting += node.all_input_nodes
    return inside
