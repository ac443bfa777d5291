"""Normalization layers."""

from __future__ import annotations

from lightning_optim.graph.labels import Axes
from lightning_optim.graph.rules.base import OperatorCall, Result, rule


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training")
def normalize_channels(call: OperatorCall) -> Axes:
    """Tie scale, shift and running statistics to the channel axis; no channel sees another.

    Statistics of the input itself are taken over all other axes, as in a standardized weight.
    """
    axes = call.axes(call["input"])
    if call.get("training", "use_input_stats"):
        call.normalize(*axes[2:], *axes[:1])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call[name] is not None:
            axes[1] = call.join(axes[1], call.axes(call[name])[0])
    return axes


@rule("layer_norm", "rms_norm")
def normalize_last(call: OperatorCall) -> Axes:
    """Tie scale and shift to the normalized axes, over which a statistic is taken.

    Without a scale the normalized shape is written in the layer alone, so its axes stay.
    """
    axes = call.axes(call["input"])
    begin = len(axes) - len(call["normalized_shape"])
    for name in ("weight", "bias"):
        operand = call.get(name)
        if operand is None:
            continue
        for offset, axis in enumerate(call.axes(operand)):
            axes[begin + offset] = call.join(axes[begin + offset], axis)
    if call["weight"] is None:
        call.freeze(*axes[begin:])
    call.normalize(*axes[begin:])
    return axes


@rule("group_norm")
def normalize_groups(call: OperatorCall) -> Axes:
    """Tie scale and shift to the channel axis, and a channel to its counterpart in every other group.

    With one channel in each group no channel sees another, and the number of groups follows.
    """
    axes, groups = call.axes(call["input"]), int(call["num_groups"])
    for name in ("weight", "bias"):
        if call[name] is not None:
            axes[1] = call.join(axes[1], call.axes(call[name])[0])
    if axes[1] is None:
        return axes
    if groups == len(axes[1]):
        if call["weight"] is None:
            call.freeze(axes[1])
        return axes
    call.labels.unite_all(axes[1].reshape(groups, -1))
    call.normalize(axes[1])
    return axes


@rule("_weight_norm", "_weight_norm_interface")
def normalize_weight(call: OperatorCall) -> Result:
    """Tie the lengths to the axis that they are given along; the weight's other axes enter the norm.

    Dimension -1 stands for none: the whole weight has one length.
    """
    axes, dim = call.axes(call["v"]), call["dim"]
    if dim != -1:
        axes[dim] = call.join(axes[dim], call.axes(call["g"])[dim])
    call.normalize(*(axis for place, axis in enumerate(axes) if place != dim))
    return axes if len(call.shape(call.node)) else [axes, call.axes(call["g"])]
