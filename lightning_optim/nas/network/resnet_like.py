"""ResNet-like network for small images: residual blocks at their largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.network.stages import make_stages


@final
class BasicBlock(nn.Module):
    """Basic block: two convolutions and a shortcut (He et al., 2016; arXiv:1512.03385, fig. 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2, bias=False)
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
@checked
class ResNetLike(nn.Module):
    """ResNet-like network: a stem, stages of residual blocks, global average pooling, a linear head.

    It is the largest member of the ready-made space ``nas/search_space/resnet_like``: kernels of 3 and 5, 1 to 3 blocks
    a stage, widths of the stages and inside the blocks. With ``kernel=3`` it is ResNet-20 (He et al., 2016;
    arXiv:1512.03385, section 4.2) with projections as shortcuts where shapes change, which is in the space.
    With the defaults there are 180,553,727,808 architectures of 772,416 to 27,955,840 MACs,
    for an image of 16 x 16 pixels.

    Args:
        widths: Channels of each stage; every stage but the first halves the image.
        depths: Blocks of each stage; one number for all.
        kernel: Kernel of the convolutions, odd.
        stem_stride: Stride of the first convolution; 2 makes all behind it four times cheaper, and suits images of 28
            pixels or more.
        in_channels: Channels of the images.
        num_classes: Classes to tell apart.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> ResNetLike(widths=(8, 16), depths=1)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64),
        depths: int | Sequence[int] = 3,
        kernel: int = 5,
        stem_stride: int = 1,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if kernel < 1 or not kernel % 2:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = make_stages(widths[0], widths, depths, lambda *shape: BasicBlock(*shape, kernel=kernel))
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
