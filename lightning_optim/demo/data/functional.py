"""Arithmetic on images in memory: splitting, shifting, mirroring."""

# B batch, C channels, H height, W width

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_of(*parts: int) -> int:
    """Mix numbers into one seed, so that neighbours share nothing.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes 63 bits


def stratified_indices(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a part in which every class has its share, to within one sample.

    Args:
        labels: Class of every sample, ``[N]``.
        size: Samples to draw, in ``[1, N - 1]``.
        seed: Which draw.

    Returns:
        Indices of the samples left and of those drawn, both ascending.

    Raises:
        ValueError: If ``size`` is out of range.

    Example:
        >>> left, drawn = stratified_indices(torch.tensor([0, 0, 0, 0, 1, 1]), size=3, seed=0)
        >>> torch.tensor([0, 0, 0, 0, 1, 1])[drawn]
        tensor([0, 0, 1])
    """
    if not 0 < size < len(labels):
        raise ValueError(f"a split of {len(labels)} samples takes a size from 1 to {len(labels) - 1}, got {size}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Every k-th of the samples in class order: each class is hit in proportion to its length.
    hits = ((torch.arange(size, dtype=torch.float64) + 0.5) * len(labels) / size).long()
    is_drawn = torch.zeros(len(labels), dtype=torch.bool)
    is_drawn[by_class[hits]] = True
    return (~is_drawn).nonzero().flatten(), is_drawn.nonzero().flatten()


def shift_images(images: Tensor, offsets: Tensor) -> Tensor:
    """Move each image by whole pixels; what comes in from outside is zero.

    Args:
        images: ``[B, C, H, W]``.
        offsets: Pixels down and to the right, ``[B, 2]``, integers.

    Example:
        >>> shift_images(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[1, 0]]))
        tensor([[[[0, 0],
                  [1, 2]]]])
    """
    reach = int(offsets.abs().max()) if offsets.numel() else 0
    padded = F.pad(images, (reach, reach, reach, reach))
    height, width = images.shape[-2:]
    rows = reach - offsets[:, :1] + torch.arange(height)  # [B, H]
    columns = reach - offsets[:, 1:] + torch.arange(width)  # [B, W]
    batch = torch.arange(len(images))[:, None, None]
    moved = padded[batch, :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    # With one channel, contiguous() would keep the strides, and convolutions would take the images for channels_last.
    return moved.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def turn_images(images: Tensor, angles: Tensor, scales: Tensor, shears: Tensor) -> Tensor:
    """Turn, scale and slant each image about its middle, interpolated; what comes in from outside is zero.

    Args:
        images: ``[B, C, H, W]``, floats.
        angles: In degrees, ``[B]``.
        scales: Factors, above 0, ``[B]``; 2 shows everything twice as large.
        shears: Pixels to the side per pixel down, ``[B]``.

    Example:
        >>> image = torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]])
        >>> quarter = turn_images(image, torch.tensor([90.0]), torch.ones(1), torch.zeros(1))
        >>> quarter.round().long()[0, 0].tolist()
        [[0, 0, 0], [0, 1, 0], [0, 1, 0]]
    """
    radians = torch.deg2rad(angles)
    cosine, sine, none = radians.cos() / scales, radians.sin() / scales, torch.zeros_like(scales)
    # Row by row, where the pixel at (x, y) comes from; width and height have one unit here.
    rows = torch.stack([cosine, sine + shears, none], 1), torch.stack([-sine, cosine, none], 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def mirror_images(images: Tensor, chosen: Tensor) -> Tensor:
    """Swap left and right of the images that ``chosen`` (``[B]``, boolean) marks."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)
