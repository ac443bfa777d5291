"""Convolutions: dense, grouped, depthwise, transposed."""

# N batch, C input channels, O output channels, G groups

from __future__ import annotations

import numpy as np

from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.rules.base import OperatorCall, rule


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolve(call: OperatorCall) -> Axes:
    """Tie C to the weight's axis 1 and the bias to O; kernel axes are fixed."""
    if call.get("transposed"):
        return transpose_convolve(call)
    weight, groups = call.axes(call["weight"]), int(call["groups"])
    outputs, inputs = weight[0], call.axes(call["input"])[-len(weight) + 1]
    if groups == 1:
        call.join(inputs, weight[1])
    elif call.shape(call["weight"])[1] == 1:
        _tie_depthwise(call, inputs, outputs, groups)
    else:
        _tie_grouped(call, inputs, weight[1], groups)
        _tie_across(call, outputs, groups)
    return _finish(call, outputs, weight[2:])


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transpose_convolve(call: OperatorCall) -> Axes:
    """Tie C to the weight's axis 0 and the bias to axis 1, which is O / G: all groups have the same outputs."""
    weight, groups = call.axes(call["weight"]), int(call["groups"])
    inputs, outputs = call.axes(call["input"])[-len(weight) + 1], weight[1]
    channels = call.join(inputs, weight[0])
    if groups > 1 and call.shape(call["weight"])[1] == 1:
        outputs = channels
    elif groups > 1:
        _tie_across(call, channels, groups)
        outputs = None if outputs is None else np.tile(outputs, groups)
    return _finish(call, outputs, weight[2:])


def _tie_depthwise(call: OperatorCall, inputs: Axis | None, outputs: Axis | None, groups: int) -> None:
    if inputs is None or outputs is None:
        call.freeze(inputs, outputs)
        return
    call.join(inputs.repeat(len(outputs) // groups), outputs)


def _tie_grouped(call: OperatorCall, inputs: Axis | None, weight: Axis | None, groups: int) -> None:
    """The number of groups stays, so a channel goes with its counterpart in every other group."""
    if inputs is None or weight is None:
        call.freeze(inputs, weight)
        return
    for part in inputs.reshape(groups, -1):
        call.join(part, weight)


def _tie_across(call: OperatorCall, axis: Axis | None, groups: int) -> None:
    if axis is not None:
        call.labels.unite_all(axis.reshape(groups, -1))


def _finish(call: OperatorCall, outputs: Axis | None, kernel: Axes) -> Axes:
    call.freeze(*kernel)
    if call["bias"] is not None:
        bias = call.axes(call["bias"])[0]
        outputs = call.join(outputs, bias) if len(call.output) else outputs
    fixed: Axes = [None] * len(call.output)
    fixed[-len(kernel) - 1] = outputs
    return fixed
