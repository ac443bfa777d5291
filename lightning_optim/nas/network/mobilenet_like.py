"""MobileNet-like network for small images: inverted bottlenecks at their largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.network.stages import make_stages


@final
class InvertedBottleneck(nn.Module):
    """Inverted bottleneck: wide inside, depthwise, narrow outside (Sandler et al., 2018; arXiv:1801.04381, fig. 4b)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, kernel: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.is_residual = stride == 1 and in_channels == out_channels

    @override
    def forward(self, features: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, H / stride, W / stride]``."""
        inner = F.relu(self.norm1(self.expand(features)))
        inner = F.relu(self.norm2(self.depthwise(inner)))
        inner = self.norm3(self.project(inner))
        output: Tensor = features + inner if self.is_residual else inner
        return output


@final
@checked
class MobileNetLike(nn.Module):
    """MobileNet-like network: inverted bottlenecks, global average pooling, a linear head; no squeeze-excite.

    It is the largest member of the ready-made space ``nas/search_space/mobilenet_like`` (Cai et al., 2020;
    arXiv:1908.09791, section 3.3): kernels of 3, 5 and 7, expansions of 3, 4 and 6, 1 to 4 blocks a stage, and widths.
    With the defaults there are 10,852,576,344,000 architectures of 577,352 to 13,435,792 MACs,
    for an image of 16 x 16 pixels.

    Args:
        widths: Channels of each stage; every stage but the first halves the image.
        depths: Blocks of each stage; one number for all.
        kernel: Kernel of the depthwise convolutions, odd.
        expansion: Channels inside a block, over those that it is given.
        stem_width: Channels of the first convolution.
        stem_stride: Its stride; 2 makes all behind it four times cheaper, and suits images of 28 pixels or more.
        in_channels: Channels of the images.
        num_classes: Classes to tell apart.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> MobileNetLike(widths=(8, 16), depths=2)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 24, 40),
        depths: int | Sequence[int] = 4,
        kernel: int = 7,
        expansion: int = 6,
        stem_width: int = 16,
        stem_stride: int = 1,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if kernel < 1 or not kernel % 2 or expansion < 1:
            raise ValueError(f"kernel must be odd and expansion at least 1, got {kernel} and {expansion}")
        self.stem = nn.Conv2d(in_channels, stem_width, 3, stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem_width)
        self.stages = make_stages(
            stem_width,
            widths,
            depths,
            lambda *shape: InvertedBottleneck(*shape, kernel=kernel, expansion=expansion),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` -> logits ``[B, num_classes]``."""
        features = F.relu(self.norm(self.stem(images)))
        for stage in self.stages:
            features = stage(features)
        logits: Tensor = self.head(self.pool(features).flatten(1))
        return logits
