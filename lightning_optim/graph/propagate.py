"""Label propagation: every axis of every tensor is labelled, from a graph's inputs to its outputs."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any, final

import torch
from torch import fx

from lightning_optim.graph.attributes import note_counts, note_widths
from lightning_optim.graph.capture import Captured
from lightning_optim.graph.labels import Axes, Axis, Labels
from lightning_optim.graph.operators import operator_name
from lightning_optim.graph.rules.base import OperatorCall, Result, Rule, all_rules, fixed
from lightning_optim.graph.rules.pointwise import combine, is_pointwise
from lightning_optim.graph.unused import tie_unused


@final
class Propagation:
    """Labels of every value of one program.

    Args:
        captured: A network in evaluation mode as a graph.

    Attributes:
        program: Its exported program.
        shape_model: What tells which cuts the network's code can follow, if that is known.
        input_first: Names of the weights that are ``[in, out, ...]``.
        labels: The union-find.
        axes: Labels of each node's value; a list of them where it has several.
        tensors: Labels of each parameter and buffer by its name.
        counts: Labels that an integer attribute counts, by the attribute's name.
        statistics: Nodes that take a statistic over labels.
        unknown: Operators without a rule that froze what they met, with their number.
    """

    def __init__(self, captured: Captured) -> None:
        self.program, self.shape_model = captured.program, captured.shape_model
        self.input_first = captured.input_first
        self._attributes = captured.attributes
        self.labels = Labels()
        self.axes: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Axes] = {}
        self.counts: dict[str, Axis] = {}
        self.statistics: set[fx.Node] = set()
        self.unknown: Counter[str] = Counter()
        self._by_storage: dict[tuple[Any, ...], Axes] = {}
        signature = self.program.graph_signature
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._held = {**self.program.constants, **self.program.state_dict}
        for node in self.program.graph.nodes:
            self._visit(node)
        tie_unused(self.labels, self.tensors, self._unused())
        note_widths(self.labels, self.tensors, self._attributes, self.counts)

    def _unused(self) -> list[str]:
        """Names of parameters that no operator reads, by whichever name."""
        names = self.program.graph_signature.inputs_to_parameters
        held = {node: name for node in self.axes if (name := names.get(node.name)) is not None}
        read = {id(self.tensors[name]) for node, name in held.items() if node.users}
        return [name for name in held.values() if id(self.tensors[name]) not in read]

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._enter(node)
        elif node.op == "call_function":
            self._call(node)
        elif node.op == "output":
            self._freeze(node)

    def _enter(self, node: fx.Node) -> None:
        value, name = node.meta.get("val"), self._names.get(node.name)
        if not isinstance(value, torch.Tensor):
            return
        if name is None:
            self.axes[node] = [None] * value.dim()
            return
        self.axes[node] = self.tensors[name] = self._tensor_axes(name, value)

    def _tensor_axes(self, name: str, value: torch.Tensor) -> Axes:
        """One tensor under two names has one set of labels."""
        held = self._held.get(name)
        key: tuple[Any, ...] = (name,)
        if isinstance(held, torch.Tensor) and held.numel() > 1:
            key = (held.data_ptr(), tuple(held.shape), held.stride())
        if key not in self._by_storage:
            track = value.is_floating_point() or value.is_complex()
            self._by_storage[key] = [self.labels.fresh(size) if track and size > 1 else None for size in value.shape]
        return self._by_storage[key]

    def _call(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source = self.axes.get(node.args[0])  # type: ignore[arg-type]  # the first operand of getitem is a node
            if source is not None:
                self.axes[node] = source[node.args[1]]
            return
        call = OperatorCall(node, self.axes, self.labels)
        self.axes[node] = self._apply(call)
        if call.uses_statistic:
            self.statistics.add(node)
        note_counts(call, self.axes[node], self._attributes, self.counts)

    def _apply(self, call: OperatorCall) -> Result:
        name = operator_name(call.node.target)
        rule = all_rules().get(name, combine if is_pointwise(call.node.target) else None)
        result = None if rule is None else self._try(rule, call)
        if result is not None:
            return result
        if self._freeze(call.node):
            self.unknown[name] += 1
        if isinstance(call.node.meta.get("val"), tuple | list):
            return [fixed(len(shape)) for shape in call.outputs]
        return fixed(len(call.output))

    def _try(self, rule: Rule, call: OperatorCall) -> Result | None:
        """What a rule says; ``None`` where it fails, or says what the output cannot be: an unforeseen call."""
        try:
            result = rule(call)
        except Exception:
            return None
        if _fits(result, call):
            return result
        for axis in _flat(result):
            self.labels.freeze(axis)
        return None

    def _freeze(self, node: fx.Node) -> bool:
        """Freeze all that goes into a node; tell whether there was anything."""
        found = [axis for source in node.all_input_nodes for axis in _flat(self.axes.get(source))]
        for axis in found:
            self.labels.freeze(axis)
        return bool(found)


def _fits(result: Result, call: OperatorCall) -> bool:
    """Whether there is one label for each position of each output, or none at all."""
    if not isinstance(call.node.meta.get("val"), tuple | list):
        return _matches(result, call.output)
    return len(result) == len(call.outputs) and all(map(_matches, result, call.outputs))


def _matches(axes: Any, shape: tuple[int, ...]) -> bool:
    return len(axes) == len(shape) and all(
        axis is None or len(axis) == size for axis, size in zip(axes, shape, strict=True)
    )


def _flat(axes: Any) -> list[Axis]:
    flat: list[Axis] = []
    for axis in axes or []:
        flat += _flat(axis) if isinstance(axis, list) else [] if axis is None else [axis]
    return flat
