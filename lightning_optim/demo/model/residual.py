"""Residual networks for small images, written as users write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


@final
class ResidualBlock(nn.Module):
    """Residual block: two 3 x 3 convolutions and a shortcut (He et al., 2016; arXiv:1512.03385, fig. 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            project = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(out_channels))

    @override
    def forward(self, features: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, H / stride, W / stride]``."""
        inner = F.relu(self.norm1(self.conv1(features)))
        inner = self.norm2(self.conv2(inner))
        return F.relu(inner + self.shortcut(features))


@final
class ResidualNet(nn.Module):
    """Residual network: a stem, one stage per width, global average pooling, a linear head.

    Every stage but the first halves the image.

    Args:
        widths: Channels of each stage.
        blocks: Blocks of each stage; one number for all.
        in_channels: Channels of the images.
        num_classes: Classes to tell apart.
        stem_stride: Stride of the first convolution; 2 makes everything behind it four times cheaper.

    Example:
        >>> import torch
        >>> ResidualNet(widths=(8, 16))(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 128),
        blocks: int | Sequence[int] = 1,
        in_channels: int = 1,
        num_classes: int = 10,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        depths = tuple(blocks) if isinstance(blocks, Sequence) else (blocks,) * len(widths)
        if not widths or len(depths) != len(widths) or min(depths + widths) < 1:
            raise ValueError(f"a network needs a width and blocks of at least 1 per stage, got {widths} and {depths}")
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                layers.append(ResidualBlock(channels, width, stride=2 if stage and not block else 1))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` -> logits ``[B, num_classes]``."""
        features = F.relu(self.norm(self.stem(images)))
        features = self.layers(features)
        logits: Tensor = self.head(self.pool(features).flatten(1))
        return logits
