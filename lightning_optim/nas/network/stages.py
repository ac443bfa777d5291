"""Stages of a convolutional network: their widths, depths and strides, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

MakeBlock = Callable[[int, int, int], nn.Module]
"""Makes a block from its input channels, its output channels and its stride."""


def make_stages(
    channels: int, widths: Sequence[int], depths: int | Sequence[int], make_block: MakeBlock
) -> nn.ModuleList:
    """Build one ``nn.Sequential`` of blocks per width; every stage but the first halves the image.

    Args:
        channels: Channels that the first block is given.
        widths: Channels of each stage, at least 1.
        depths: Blocks of each stage, at least 1; one number for all.
        make_block: Makes a block.

    Raises:
        ValueError: If a number is below 1, or there is not one depth for each width.

    Example:
        >>> stages = make_stages(1, (4, 8), (1, 2), lambda *shape: nn.Conv2d(*shape[:2], 3, shape[2], padding=1))
        >>> [[block.stride[0] for block in stage] for stage in stages]
        [[1], [2, 1]]
    """
    counts = tuple(depths) if isinstance(depths, Sequence) else (depths,) * len(widths)
    if not widths or len(counts) != len(widths) or min((*counts, *widths)) < 1:
        raise ValueError(
            f"widths and depths must be at least 1, and one depth for each width or one for all, got {list(widths)} "
            f"and {list(counts)}"
        )
    stages: list[nn.Module] = []
    for stage, (width, depth) in enumerate(zip(widths, counts, strict=True)):
        strides = (2 if stage else 1, *(1,) * (depth - 1))
        befores = (channels, *(width,) * (depth - 1))
        stages.append(nn.Sequential(*(make_block(before, width, stride)
                                      for before, stride in zip(befores, strides, strict=True))))  # fmt: skip
        channels = width
    return nn.ModuleList(stages)
