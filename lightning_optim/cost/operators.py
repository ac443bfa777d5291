"""Timed operators: the calls of a graph, one by one, at any channel counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, fx

from lightning_optim.cost.axis_widths import AxisWidths, is_tensor
from lightning_optim.cost.prices import Channels, Width
from lightning_optim.graph.coupling import Coupling
from lightning_optim.graph.operators import FREE, OperatorKind, kind_of, operator_name


@final
class TimedOperator:
    """Operator of a graph that can be timed at any channel counts.

    Args:
        node: Its node.
        axis_widths: Lengths of the graph's axes.
        scale: Batch that is timed, as a multiple of the one that was captured.
        constants: Nodes of parameters and buffers, which have no batch.
    """

    def __init__(self, node: fx.Node, axis_widths: AxisWidths, scale: float, constants: set[fx.Node]) -> None:
        self.node, self._scale, self._constants = node, scale, constants
        self._widths = {source: axis_widths.of_value(source) for source in node.all_input_nodes if is_tensor(source)}
        pools = {pool for widths in self._widths.values() for width in widths for pool in width.parts}
        self.pools = [pool for pool in axis_widths.sizes if pool in pools]

    def key(self, channels: Channels) -> str:
        """Return a text that is equal for two calls that take the same time."""
        described = fx.node.map_arg((self.node.args, self.node.kwargs), lambda source: self._describe(source, channels))
        return f"{self.node.target}{described}"

    def make_call(self, channels: Channels) -> Callable[[], object]:
        """Return a call on random operands, as long as these channel counts make them."""
        made = {source: self._operand(source, channels) for source in self._widths}
        args = list(fx.node.map_arg(tuple(self.node.args), made.__getitem__))
        kwargs = fx.node.map_arg(dict(self.node.kwargs), made.__getitem__)
        _fit_to_shapes(operator_name(self.node.target), args)
        target: Any = self.node.target
        return lambda: target(*args, **kwargs)

    def _describe(self, source: fx.Node, channels: Channels) -> Any:
        return (self._shape(source, channels), str(source.meta["val"].stride())) if source in self._widths else "?"

    def _shape(self, source: fx.Node, channels: Channels) -> tuple[int, ...]:
        lengths = [round(width.at(channels)) for width in self._widths[source]]
        if lengths and source not in self._constants:
            lengths[0] = max(1, round(lengths[0] * self._scale)) if not self._widths[source][0].parts else lengths[0]
        return tuple(lengths)

    def _operand(self, source: fx.Node, channels: Channels) -> Tensor:
        like, shape = source.meta["val"], self._shape(source, channels)
        made = torch.rand(shape).to(like.dtype)
        if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
            return made.contiguous(memory_format=torch.channels_last)
        return made


def timed_operators(coupling: Coupling, axis_widths: AxisWidths, scale: float) -> list[TimedOperator]:
    """Every operator of a graph that computes something, in order."""
    program = coupling.propagation.program
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in named}
    return [
        TimedOperator(node, axis_widths, scale, constants)
        for node in program.graph.nodes
        if node.op == "call_function" and is_tensor(node) and operator_name(node.target) not in FREE
    ]


def _fit_to_shapes(name: str, args: list[Any]) -> None:
    """Set the arguments of an operator that follow from its operands' lengths."""
    if kind_of(name) is OperatorKind.CONVOLUTION and len(args) > 6:
        args[6] = args[0].shape[1] // args[1].shape[1]
    elif kind_of(name) is OperatorKind.LAYER_NORM:
        args[1] = list(args[0].shape[-len(args[1]) :])


def lengths_of(pools: list[str]) -> tuple[Width, ...]:
    """One axis per pool, or one of all their channels together where they are many."""
    if len(pools) <= 2:
        return tuple(Width(0.0, {pool: 1.0}) for pool in pools)
    return (Width(0.0, dict.fromkeys(pools, 1.0)),)
