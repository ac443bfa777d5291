"""Concatenation, splitting and indexing of tensors."""

from __future__ import annotations

import numpy as np

from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.rules.base import OperatorCall, Result, rule
from lightning_optim.graph.rules.pointwise import broadcast


@rule("cat", "concat", "concatenate")
def concatenate(call: OperatorCall) -> Axes:
    """Concatenate labels; a fixed part gets labels of its own, frozen."""
    operands = call["tensors"]
    dim = call.get("dim", "axis") % len(call.output)
    others = [(_without(call.axes(part), dim), _drop(call.shape(part), dim)) for part in operands]
    joined = broadcast(call, others, _drop(call.output, dim))
    parts = [call.axes(part)[dim] for part in operands]
    whole: Axis | None = None
    if any(part is not None for part in parts):
        lengths = [call.shape(part)[dim] for part in operands]
        whole = np.concatenate([_labelled(call, part, length) for part, length in zip(parts, lengths, strict=True)])
    return [*joined[:dim], whole, *joined[dim:]]


def _labelled(call: OperatorCall, axis: Axis | None, length: int) -> Axis:
    if axis is None:
        axis = call.labels.fresh(length)
        call.freeze(axis)
    return axis


def _without(axes: Axes, dim: int) -> Axes:
    return axes[:dim] + axes[dim + 1 :]


def _drop(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return shape[:dim] + shape[dim + 1 :]


@rule("stack")
def stack(call: OperatorCall) -> Axes:
    """Join the axes of all parts; the new one is fixed."""
    operands = call["tensors"]
    dim = call["dim"] % len(call.output)
    parts = [(call.axes(part), call.shape(part)) for part in operands]
    joined = broadcast(call, parts, _drop(call.output, dim))
    return [*joined[:dim], None, *joined[dim:]]


@rule("unbind")
def unbind(call: OperatorCall) -> Result:
    """Freeze the axis that is taken apart."""
    axes = call.axes(call["self"])
    dim = call["dim"] % len(axes)
    call.freeze(axes[dim])
    return [_without(axes, dim) for _ in call.outputs]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(call: OperatorCall) -> Result:
    """Equal parts stay equal: a channel goes with its counterparts. Unequal ones are written in numbers, and stay."""
    axes = call.axes(call["self"])
    dim = call["dim"] % len(axes)
    lengths = [shape[dim] for shape in call.outputs]
    axis = axes[dim]
    if axis is None:
        return [list(axes) for _ in lengths]
    if len(set(lengths)) > 1:
        call.freeze(axis)
    else:
        call.labels.unite_all(axis.reshape(len(lengths), -1))
    ends = np.cumsum(lengths)[:-1]
    return [[*axes[:dim], part, *axes[dim + 1 :]] for part in np.split(axis, ends)]


@rule("slice", "narrow")
def cut_out(call: OperatorCall) -> Axes:
    """Read a run of positions: one of several equal parts, or else the axis is fixed."""
    axes, shape = call.axes(call["self"]), call.shape(call["self"])
    dim = call["dim"] % len(axes)
    axis, length = axes[dim], call.output[dim]
    if axis is None or length == shape[dim]:
        return axes
    begin = _begin(call["start"], shape[dim])
    if call.get("step") in (None, 1) and length and shape[dim] % length == 0 and begin % length == 0:
        call.labels.unite_all(axis.reshape(-1, length))
        axes[dim] = axis[begin : begin + length]
    else:
        call.freeze(axis)
        axes[dim] = None
    return axes


def _begin(start: int | None, size: int) -> int:
    begin = start or 0
    return begin + size if begin < 0 else begin


@rule("select")
def select(call: OperatorCall) -> Axes:
    """Freeze the axis that one position is read from."""
    axes = call.axes(call["self"])
    dim = call["dim"] % len(axes)
    call.freeze(axes[dim])
    return _without(axes, dim)


@rule("index_select")
def select_many(call: OperatorCall) -> Axes:
    """Freeze the axis that positions are read from."""
    axes = call.axes(call["self"])
    dim = call["dim"] % len(axes)
    call.freeze(axes[dim])
    axes[dim] = None
    return axes


@rule("index")
def look_up(call: OperatorCall) -> Axes:
    """Freeze the indexed axes; the others pass around them."""
    axes, indices = call.axes(call["self"]), list(call["indices"])
    indexed = [dim for dim, index in enumerate(indices) if index is not None]
    call.freeze(*(axes[dim] for dim in indexed))
    rest = [axis for dim, axis in enumerate(axes) if dim not in indexed]
    new = len(call.output) - len(rest)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    place = indexed[0] if adjacent else 0
    return rest[:place] + [None] * new + rest[place:]


@rule("embedding")
def embed(call: OperatorCall) -> Axes:
    """Rows are chosen by number, so they stay; the width passes."""
    weight = call.axes(call["weight"])
    call.freeze(weight[0])
    return [None] * (len(call.output) - 1) + weight[1:]
