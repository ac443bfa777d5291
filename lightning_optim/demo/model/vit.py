"""Vision transformer, small, written as users write them."""

# B batch, N tokens, D dimensions, H heads, E dimensions of a head

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


@final
class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017; arXiv:1706.03762, eq. 1)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(dim, dim)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        batch, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # [B, H, N, E] each
        weights = self.softmax(query @ key.transpose(-2, -1) * self.scale)  # [B, H, N, N]
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        output: Tensor = self.proj(mixed)
        return output


@final
class TransformerBlock(nn.Module):
    """Transformer block: attention and a two-layer perceptron, each normalized before and added to what came in."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        tokens = tokens + self.attention(self.norm1(tokens))
        hidden = F.gelu(self.fc1(self.norm2(tokens)))
        output: Tensor = tokens + self.fc2(hidden)
        return output


@final
class VisionTransformer(nn.Module):
    """Vision transformer: patches as tokens, blocks, mean, linear head (Dosovitskiy et al., 2021; arXiv:2010.11929).

    Args:
        resolution: Side of the images in pixels.
        patch: Side of a patch in pixels; divides ``resolution``.
        dim: Dimensions of a token; a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Attention heads of a block.
        hidden: Dimensions inside a block's perceptron.
        in_channels: Channels of the images.
        num_classes: Classes to tell apart.

    Example:
        >>> VisionTransformer(dim=16, depth=1, hidden=32)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        resolution: int = 16,
        patch: int = 4,
        dim: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        hidden: int = 128,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if resolution % patch or dim % num_heads:
            raise ValueError(
                f"patch must divide resolution and num_heads must divide dim, got {patch} and {resolution}, "
                f"{num_heads} and {dim}"
            )
        self.embed = nn.Conv2d(in_channels, dim, patch, patch)
        self.position = nn.Parameter(torch.empty(1, (resolution // patch) ** 2, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, num_heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """``[B, in_channels, resolution, resolution]`` -> logits ``[B, num_classes]``."""
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.position
        tokens = self.norm(self.blocks(tokens))
        logits: Tensor = self.head(tokens.mean(1))
        return logits
