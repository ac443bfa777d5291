"""Transformer-like network of patches or tokens, at its largest."""

# B batch, N tokens, D dimensions, H heads, E dimensions of a head

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.checked import checked


@final
class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017; arXiv:1706.03762, eq. 1)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        batch, length, _ = tokens.shape
        query, key, value = (
            layer(tokens).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # [B, H, N, E] each
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output


@final
class TransformerLayer(nn.Module):
    """Transformer layer: attention and a two-layer perceptron, each normalized before and added to what came in."""

    def __init__(self, dim: int, num_heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, expansion * dim)
        self.fc2 = nn.Linear(expansion * dim, dim)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        tokens = tokens + self.attention(self.norm1(tokens))
        output: Tensor = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return output


@final
@checked
class TransformerLike(nn.Module):
    """Transformer-like network: patches of an image or tokens, layers, mean, linear head.

    It is the largest member of the ready-made space ``nas/search_space/transformer_like`` (Chen et al., 2021;
    arXiv:2107.00651, section 4.1): the embedding, and in each of 2 to 6 layers the heads and the hidden width.
    With the defaults there are 1,793,583 architectures of 221,504 to 4,932,224 MACs,
    for an image of 16 x 16 pixels.

    Args:
        length: Number of tokens; of patches, it is ``(pixels of a side / patch) ** 2``.
        patch: Side of a patch in pixels; ``None`` takes tokens, whole numbers below ``vocabulary``, ``[B, length]``.
        vocabulary: Number of different tokens; without patches alone.
        dim: Dimensions of a token; a multiple of ``num_heads``.
        depth: Number of layers.
        num_heads: Attention heads of a layer.
        expansion: Dimensions inside a layer's perceptron, over ``dim``.
        in_channels: Channels of the images.
        num_classes: Classes to tell apart.

    Raises:
        ValueError: If a number is out of range, or neither or both of ``patch`` and ``vocabulary`` are given.

    Example:
        >>> TransformerLike(dim=16, depth=1)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
        >>> TransformerLike(patch=None, vocabulary=9, length=5, dim=16)(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 10])
    """

    def __init__(  # noqa: PLR0913  # images and tokens
        self,
        *,
        length: int = 16,
        patch: int | None = 4,
        vocabulary: int | None = None,
        dim: int = 64,
        depth: int = 6,
        num_heads: int = 4,
        expansion: int = 4,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if dim % num_heads or min(length, dim, depth, num_heads, expansion) < 1:
            raise ValueError(
                f"dim must be a multiple of num_heads, and length, depth and expansion at least 1, got {dim}, "
                f"{num_heads}, {length}, {depth} and {expansion}"
            )
        if (patch is None) == (vocabulary is None):
            raise ValueError(f"give patch for images, or vocabulary for tokens, got {patch} and {vocabulary}")
        self.embed: nn.Module
        if patch is not None:
            self.embed = nn.Conv2d(in_channels, dim, patch, patch)
        else:
            assert vocabulary is not None, "one of them is given"
            self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.empty(1, length, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.layers = nn.Sequential(*(TransformerLayer(dim, num_heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Images ``[B, in_channels, H, W]`` or tokens ``[B, N]`` -> logits ``[B, num_classes]``."""
        tokens = self.embed(inputs)
        if isinstance(self.embed, nn.Conv2d):
            tokens = tokens.flatten(2).transpose(1, 2)
        tokens = self.norm(self.layers(tokens + self.position))
        logits: Tensor = self.head(tokens.mean(1))
        return logits
