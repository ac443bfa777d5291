"""Residual nets for images of 32 x 32, by depth and width."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions with batch norm, and a shortcut without weights, as in arXiv:1512.03385, option A."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, outputs, H, W]``, of half the size where channels are added."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    """Residual net of depth ``6 n + 2``: a stem, three stages of ``n`` blocks, and a linear layer.

    Depth 20 and width 16 are the paper's ResNet-20 (0.27 M weights); depth 32 and width 32 are twice as wide.
    """

    def __init__(self, depth: int = 20, width: int = 16, *, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        if depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2, got {depth}")
        widths = (width, width, 2 * width, 4 * width)
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Block(i, o), *(Block(o, o) for _ in range((depth - 2) // 6 - 1)))
                for i, o in itertools.pairwise(widths)
            )
        )
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]``."""
        return self.fc(self.stages(self.stem(x)).mean((-2, -1)))
