"""Kernel of a convolution, cropped around its centre."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_optim.surgery.torch_private import Convolution, refresh_repeated_padding


def cropped_padding(layer: Convolution, sizes: Sequence[int]) -> tuple[int, ...]:
    """Padding with which a cropped kernel returns as many positions as the whole one.

    Args:
        layer: The convolution, with its whole kernel. Padding that is a word adapts itself, or is zero.
        sizes: Size of the cropped kernel in each dimension.

    Returns:
        Padding of both sides in each dimension; below zero where the crop needs less than none.

    Example:
        >>> from torch import nn
        >>> cropped_padding(nn.Conv2d(1, 1, 5, padding=4, dilation=2), (3, 3))
        (2, 2)
    """
    lost = [step * (own - size) // 2 for step, own, size in zip(layer.dilation, layer.kernel_size, sizes, strict=True)]
    if layer.padding == "same":
        return tuple(step * (size - 1) // 2 for step, size in zip(layer.dilation, sizes, strict=True))
    own = [0] * len(lost) if layer.padding == "valid" else [int(each) for each in layer.padding]
    return tuple(padding - less for padding, less in zip(own, lost, strict=True))


def crop_kernel(layer: Convolution, sizes: Sequence[int]) -> None:
    """Set ``kernel_size`` and ``padding`` of a convolution whose weight has lost the rim of its kernel.

    Where the layer has too little padding of its own, what pads its input must follow, and the layer keeps none.

    Args:
        layer: The convolution; its attributes are still those of the whole kernel.
        sizes: Size of the kernel that its weight has now, in each dimension.

    Example:
        >>> from torch import nn
        >>> layer = nn.Conv1d(1, 1, 7, padding=3)
        >>> crop_kernel(layer, (3,))
        >>> layer.kernel_size, layer.padding
        ((3,), (1,))
    """
    padding = cropped_padding(layer, sizes)
    layer.kernel_size = tuple(sizes)
    if not isinstance(layer.padding, str) and min(padding) >= 0:
        layer.padding = padding
    refresh_repeated_padding(layer)
