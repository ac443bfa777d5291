"""DARTS-like network for small images: cells whose every edge is a separable convolution."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.network.cell_operations import SeparableConv, SkipConnection


@final
class Cell(nn.Module):
    """Cell: nodes that add up what their edges bring, from two earlier cells and all earlier nodes.

    Args:
        before: Channels of the cell before the last one, and of the last one.
        channels: Channels of each node; the cell returns those of all its nodes.
        num_nodes: Number of nodes.
        is_reduction: Whether edges from the earlier cells halve the image.
        was_reduction: Whether the last cell did.
    """

    def __init__(
        self, before: tuple[int, int], channels: int, num_nodes: int, *, is_reduction: bool, was_reduction: bool
    ) -> None:
        super().__init__()
        # A fresh convolution even where the channels agree, so that each cell has features of its own.
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(before[1], channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.earlier: nn.Module = (
            SkipConnection(before[0], channels, 2)
            if was_reduction
            else nn.Sequential(nn.ReLU(), nn.Conv2d(before[0], channels, 1, bias=False), nn.BatchNorm2d(channels))
        )
        self.num_nodes = num_nodes
        self.edges = nn.ModuleDict(
            {
                f"{start}_{node}": SeparableConv(channels, channels, 2 if is_reduction and start < 2 else 1, kernel=3)
                for node in range(2, num_nodes + 2)
                for start in range(node)
            }
        )

    @override
    def forward(self, earlier: Tensor, last: Tensor) -> Tensor:
        """Outputs of the two earlier cells -> ``[B, num_nodes * channels, H, W]``."""
        states = [self.earlier(earlier), self.last(last)]
        for node in range(2, self.num_nodes + 2):
            states.append(sum(self.edges[f"{start}_{node}"](state) for start, state in enumerate(states)))
        return torch.cat(states[2:], dim=1)


@final
@checked
class DARTSLike(nn.Module):
    """DARTS-like network: a stem, normal and reduction cells, global average pooling, a linear head.

    In the ready-made space ``nas/search_space/darts_like`` (Liu et al., 2019; arXiv:1806.09055, section 3.1.1) each
    edge is this separable convolution, one of 5 x 5, a dilated one, an average, a maximum, a skip or nothing, the same
    in all normal cells and in all reduction cells.
    With the defaults there are 459,986,536,544,739,960,976,801 architectures of 679,168 to 3,546,368 MACs,
    for an image of 16 x 16 pixels.

    Args:
        channels: Channels of each node in the first cell; each reduction doubles them.
        num_cells: Number of cells, at least 1; those at a third and at two thirds are reductions, but never the first.
        num_nodes: Nodes of a cell, at least 1; node ``n`` has ``n + 1`` edges, counted from 1.
        stem_stride: Stride of the first convolution; 2 makes all behind it four times cheaper, and suits images of 28
            pixels or more.
        in_channels: Channels of the images.
        num_classes: Classes to tell apart.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> DARTSLike(channels=4, num_cells=2, num_nodes=2)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        channels: int = 8,
        num_cells: int = 4,
        num_nodes: int = 4,
        stem_stride: int = 1,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if min(channels, num_cells, num_nodes) < 1:
            raise ValueError(
                f"channels, num_cells and num_nodes must be at least 1, got {channels}, {num_cells} and {num_nodes}"
            )
        self.stem = nn.Conv2d(in_channels, 3 * channels, 3, stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3 * channels)
        self.cells = nn.ModuleDict()
        before, was_reduction = (3 * channels, 3 * channels), False
        for place in range(num_cells):
            is_reduction = place > 0 and place in (max(1, num_cells // 3), 2 * num_cells // 3)
            channels *= 2 if is_reduction else 1
            cell = Cell(before, channels, num_nodes, is_reduction=is_reduction, was_reduction=was_reduction)
            self.cells[f"{'reduction' if is_reduction else 'normal'}_{place}"] = cell
            before, was_reduction = (before[1], num_nodes * channels), is_reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(before[1], num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` -> logits ``[B, num_classes]``."""
        earlier = last = F.relu(self.norm(self.stem(images)))
        for cell in self.cells.values():
            earlier, last = last, cell(earlier, last)
        logits: Tensor = self.head(self.pool(last).flatten(1))
        return logits
