"""Reductions over axes, and softmax."""

from __future__ import annotations

from lightning_optim.graph.labels import Axes
from lightning_optim.graph.rules.base import OperatorCall, Result, fixed, rule


@rule("mean", "sum", "amax", "amin", "var", "std", "max", "min", "prod", "norm", "linalg_vector_norm", "logsumexp")
def reduce(call: OperatorCall) -> Result:
    """Drop the reduced axes; a reduction over labels is a statistic of them."""
    operands = call.node.all_input_nodes
    axes = call.axes(call.first())
    if len(operands) > 1:  # the two-tensor form of max and min
        call.freeze(*(axis for operand in operands for axis in call.axes(operand)))
        return fixed(len(call.output))
    if isinstance(call.node.meta["val"], tuple):  # values and positions: a position is no channel any more
        call.freeze(*axes)
        return [fixed(len(shape)) for shape in call.outputs]
    reduced = _dimensions(call, len(axes))
    call.normalize(*(axes[dim] for dim in reduced))
    if call.get("keepdim"):
        return [None if dim in reduced else axis for dim, axis in enumerate(axes)]
    return [axis for dim, axis in enumerate(axes) if dim not in reduced]


def _dimensions(call: OperatorCall, rank: int) -> set[int]:
    given = call.get("dim", "dims")
    if given is None or given == []:
        return set(range(rank))
    return {dim % rank for dim in (given if isinstance(given, list | tuple) else [given])}


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def compete(call: OperatorCall) -> Axes:
    """Freeze the axis along which positions compete."""
    axes = call.axes(call.first())
    dim = call["dim"] % len(axes)
    call.freeze(axes[dim])
    axes[dim] = None
    return axes
