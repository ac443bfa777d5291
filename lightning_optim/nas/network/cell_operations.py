"""Operations on the edges of a cell (Liu et al., 2019; arXiv:1806.09055, section 3.1.1)."""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


@final
class NoConnection(nn.Module):
    """No connection: zeros of the shape that another operation returns.

    Args:
        out_channels: Channels that it returns.
        stride: What divides the sizes.

    Example:
        >>> import torch
        >>> NoConnection(out_channels=3, stride=2)(torch.ones(1, 2, 5, 5)).shape
        torch.Size([1, 3, 3, 3])
    """

    def __init__(self, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    @override
    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> zeros ``[B, C_out, H / stride, W / stride]``."""
        height, width = (-(-size // self.stride) for size in features.shape[2:])
        return features.new_zeros(features.shape[0], self.out_channels, height, width)


@final
class SkipConnection(nn.Module):
    """Skip connection: what comes in, or, where sizes or channels change, a factorized reduction of it.

    A reduction is two 1 x 1 convolutions, one of them on the positions that the other leaves out, and batch norm.

    Args:
        in_channels: Channels that it is given.
        out_channels: Channels that it returns.
        stride: 1 or 2.

    Example:
        >>> import torch
        >>> SkipConnection(2, 4, 2)(torch.ones(1, 2, 5, 5)).shape
        torch.Size([1, 4, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.is_reduction = stride != 1 or in_channels != out_channels
        if self.is_reduction:
            half = out_channels // 2
            self.even = nn.Conv2d(in_channels, half, 1, stride, bias=False)
            self.odd = nn.Conv2d(in_channels, out_channels - half, 1, stride, bias=False)
            self.norm = nn.BatchNorm2d(out_channels)
            self.shift = stride - 1

    @override
    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C_out, H / stride, W / stride]``."""
        if not self.is_reduction:
            return features
        features = F.relu(features)
        # Padded at the end first, so that an odd size has as many positions shifted as unshifted.
        shifted = F.pad(features, (0, self.shift, 0, self.shift))[:, :, self.shift :, self.shift :]
        reduced: Tensor = self.norm(torch.cat([self.even(features), self.odd(shifted)], dim=1))
        return reduced


def _separable(in_channels: int, out_channels: int, stride: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    reach = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(in_channels, in_channels, kernel, stride, reach, dilation, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


@final
class SeparableConv(nn.Module):
    """Separable convolution, twice: ReLU, depthwise, 1 x 1 and batch norm each time.

    Args:
        in_channels: Channels that it is given.
        out_channels: Channels that it returns.
        stride: Of the first depthwise convolution.
        kernel: Kernel of the depthwise convolutions, odd.

    Example:
        >>> import torch
        >>> SeparableConv(2, 4, stride=2, kernel=5)(torch.ones(1, 2, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, kernel: int = 3) -> None:
        super().__init__()
        first = _separable(in_channels, in_channels, stride, kernel)
        self.layers = nn.Sequential(*first, *_separable(in_channels, out_channels, 1, kernel))

    @override
    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C_out, H / stride, W / stride]``."""
        output: Tensor = self.layers(features)
        return output


@final
class DilatedConv(nn.Module):
    """Dilated separable convolution: ReLU, depthwise with holes, 1 x 1, batch norm.

    Args:
        in_channels: Channels that it is given.
        out_channels: Channels that it returns.
        stride: Of the depthwise convolution.
        kernel: Its kernel, odd.
        dilation: Distance of the positions that it reads.

    Example:
        >>> import torch
        >>> DilatedConv(2, 4, stride=2)(torch.ones(1, 2, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, kernel: int = 3, dilation: int = 2
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_separable(in_channels, out_channels, stride, kernel, dilation))

    @override
    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C_out, H / stride, W / stride]``."""
        output: Tensor = self.layers(features)
        return output


@final
class PooledConnection(nn.Module):
    """Pooled connection: average or maximum of 3 x 3 positions, and batch norm, which keeps the channels.

    Args:
        in_channels: Channels that it is given and returns.
        stride: Of the pooling.
        kind: ``"average"`` or ``"maximum"``.

    Example:
        >>> import torch
        >>> PooledConnection(2, stride=2, kind="maximum")(torch.ones(1, 2, 8, 8)).shape
        torch.Size([1, 2, 4, 4])
    """

    def __init__(self, in_channels: int, stride: int = 1, *, kind: Literal["average", "maximum"] = "average") -> None:
        super().__init__()
        if kind not in ("average", "maximum"):
            raise ValueError(f"kind must be 'average' or 'maximum', got {kind!r}")
        average = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        self.pool = average if kind == "average" else nn.MaxPool2d(3, stride, padding=1)
        self.norm = nn.BatchNorm2d(in_channels, affine=False)

    @override
    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H / stride, W / stride]``."""
        output: Tensor = self.norm(self.pool(features))
        return output
