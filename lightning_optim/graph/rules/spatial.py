"""Pooling and resampling: batch and channels stay, everything else is fixed."""

from __future__ import annotations

from lightning_optim.graph.labels import Axes
from lightning_optim.graph.rules.base import OperatorCall, Result, rule


def _keep_channels(call: OperatorCall, spatial: int) -> Axes:
    axes = call.axes(call.first())
    call.freeze(*axes[-spatial:])
    return axes[:-spatial] + [None] * spatial


@rule("avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "upsample_nearest1d", "upsample_linear1d")
def resample_line(call: OperatorCall) -> Axes:
    """Keep batch and channels."""
    return _keep_channels(call, 1)


@rule(
    "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
)  # fmt: skip
def resample_plane(call: OperatorCall) -> Axes:
    """Keep batch and channels."""
    return _keep_channels(call, 2)


@rule("avg_pool3d", "max_pool3d", "adaptive_avg_pool3d", "upsample_nearest3d", "upsample_trilinear3d")
def resample_volume(call: OperatorCall) -> Axes:
    """Keep batch and channels."""
    return _keep_channels(call, 3)


@rule("max_pool2d_with_indices", "adaptive_max_pool2d", "max_pool1d_with_indices", "adaptive_max_pool1d")
def resample_with_positions(call: OperatorCall) -> Result:
    """Keep batch and channels of the values and of their positions."""
    axes = _keep_channels(call, 1 if "1d" in str(call.node.target) else 2)
    return [list(axes) for _ in call.outputs]
