"""Pixel shuffle, its inverse, and channel shuffle."""

# C channels, R factor by which an image grows

from __future__ import annotations

from lightning_optim.graph.labels import Axes
from lightning_optim.graph.rules.base import OperatorCall, rule


@rule("pixel_shuffle")
def make_pixels(call: OperatorCall) -> Axes:
    """Tie the R * R channels that become one."""
    axes, factor = call.axes(call["self"]), int(call["upscale_factor"])
    call.freeze(*axes[-2:])
    axis = axes[-3]
    if axis is not None:
        table = axis.reshape(-1, factor * factor)
        call.labels.unite_all(table.T)
        axis = table[:, 0].copy() if len(table) > 1 else None
        call.freeze(*([table] if axis is None else []))
    return [*axes[:-3], axis, None, None]


@rule("pixel_unshuffle")
def make_channels(call: OperatorCall) -> Axes:
    """Hand a channel's label on to the R * R channels that it becomes."""
    axes, factor = call.axes(call["self"]), int(call["downscale_factor"])
    call.freeze(*axes[-2:])
    axis = axes[-3]
    return [*axes[:-3], None if axis is None else axis.repeat(factor * factor), None, None]


@rule("channel_shuffle", "native_channel_shuffle")
def shuffle_channels(call: OperatorCall) -> Axes:
    """The number of groups stays, so a channel goes with its counterpart in every other group."""
    axes, groups = call.axes(call["self"]), int(call["groups"])
    if axes[1] is not None:
        table = axes[1].reshape(groups, -1)
        call.labels.unite_all(table)
        axes[1] = table.T.reshape(-1)
    return axes
