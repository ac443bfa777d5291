"""Element-wise operators with broadcasting, and operators that leave a tensor as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.rules.base import OperatorCall, fixed, rule
from lightning_optim.surgery.torch_private import OpOverload


def is_pointwise(target: object) -> bool:
    """Whether PyTorch itself tags the operator as element-wise."""
    return isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags


def broadcast(call: OperatorCall, operands: Sequence[tuple[Axes, tuple[int, ...]]], output: tuple[int, ...]) -> Axes:
    """Join axes that meet under broadcasting.

    Args:
        call: The operator call.
        operands: Labels and shape of each operand.
        output: Shape that they broadcast to.
    """
    result: Axes = []
    for position, size in enumerate(output):
        meeting: list[Axis | None] = []
        for axes, shape in operands:
            own = position - (len(output) - len(shape))
            if own >= 0 and shape[own] == size and size > 1:
                meeting.append(axes[own])
        result.append(call.join(*meeting) if meeting else None)
    return result


# PyTorch does not tag these, though they are element-wise.
@rule(
    "relu6_", "hardswish", "hardswish_", "gelu_", "mish_", "log_sigmoid", "threshold_", "where", "masked_fill",
    "masked_fill_", "rsub", "floor_divide", "multiply", "divide", "subtract", "negative", "absolute", "arctan2",
    "expand_as",
)  # fmt: skip
def combine(call: OperatorCall) -> Axes:
    """Join all tensor operands of an element-wise operator."""
    operands = [(call.axes(node), call.shape(node)) for node in call.node.all_input_nodes]
    return broadcast(call, operands, call.output)


@rule(
    "alias", "clone", "contiguous", "detach", "dropout", "dropout_", "feature_dropout", "alpha_dropout",
    "lift_fresh_copy", "zero_", "fill_", "to", "_to_copy", "type_as", "zeros_like", "ones_like", "full_like",
)  # fmt: skip
def keep(call: OperatorCall) -> Axes:
    """Hand the first operand's axes on; a second one lends its type alone."""
    return call.axes(call.first())


@rule(
    "_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size", "sym_numel", "sym_constrain_range",
    "sym_constrain_range_for_size",
)  # fmt: skip
def inspect(call: OperatorCall) -> Axes:
    """Read a type, a device or a length, and no element; the output has no channels."""
    return []


@rule("new_zeros", "new_ones", "new_full", "new_empty")
def fill(call: OperatorCall) -> Axes:
    """Make a tensor of a given shape; the operand lends its type alone."""
    return fixed(len(call.output))


@rule("prelu")
def scale_negatives(call: OperatorCall) -> Axes:
    """Tie the slopes to the channel axis, unless one slope serves all."""
    axes, slopes = call.axes(call["self"]), call.axes(call["weight"])
    if call.shape(call["weight"]) != (1,) and len(axes) > 1:
        axes[1] = call.join(axes[1], slopes[-1])
    return axes


@rule("glu")
def gate(call: OperatorCall) -> Axes:
    """A channel of the first half goes with its gate in the second."""
    axes = call.axes(call["self"])
    dim = call["dim"] % len(axes)
    axis = axes[dim]
    if axis is not None:
        call.labels.unite_all(axis.reshape(2, -1))
        axes[dim] = axis[: len(axis) // 2]
    return axes
