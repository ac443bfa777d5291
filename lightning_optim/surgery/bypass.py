"""Bypass of a branch that adds nothing: zeros in place of its modules, without computing."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.surgery.torch_private import Convolution, TransposedConvolution

Window = tuple[int, int, int]
"""Reach of a kernel, padding on both sides together, stride."""


@final
class Bypass(nn.Module):
    """Zeros of the shape that a module would have returned; it has no parameters and no buffers.

    The zeros are a tensor of their own, into which code may go on to add.

    Args:
        channel_dim: Dimension of the input that becomes ``channels`` long, counted from the end.
        channels: Its length; ``None`` leaves the shape as it is.
        windows: How the dimensions behind it shrink; empty leaves them as they are.
        num_others: How many values the module returned beside its output; they become ``None``.

    Example:
        >>> import torch
        >>> Bypass(channel_dim=-1, channels=2)(torch.ones(1, 3))
        tensor([[0., 0.]])
    """

    def __init__(
        self,
        *,
        channel_dim: int = -1,
        channels: int | None = None,
        windows: tuple[Window, ...] = (),
        num_others: int = 0,
    ) -> None:
        super().__init__()
        # PyTorch's encoders ask an attention for these before they call it.
        self.batch_first, self.in_proj_bias = False, None
        self.channel_dim, self.channels, self.windows, self.num_others = channel_dim, channels, windows, num_others

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros for whatever tensor comes first."""
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        shape = list(first.shape)
        if self.channels is not None:
            shape[self.channel_dim] = self.channels
        for dim, (reach, padding, stride) in enumerate(self.windows, start=-len(self.windows)):
            shape[dim] = (shape[dim] + padding - reach) // stride + 1
        zeros = first.new_zeros(shape)
        return (zeros, *[None] * self.num_others) if self.num_others else zeros

    @override
    def extra_repr(self) -> str:
        return "" if self.channels is None else f"channels={self.channels}"


def bypass_of(module: nn.Module) -> Bypass:
    """Stand-in for a module; of one whose kind is not known, the output must be shaped as the first input.

    Example:
        >>> bypass_of(nn.Linear(4, 8))
        Bypass(channels=8)
    """
    if isinstance(module, nn.MultiheadAttention):
        bypass = Bypass(channels=int(module.out_proj.weight.shape[0]), num_others=1)
        bypass.batch_first = module.batch_first
        return bypass
    if isinstance(module, nn.Linear):
        return Bypass(channels=module.out_features)
    if isinstance(module, Convolution) and not isinstance(module, TransposedConvolution):
        windows = _windows(module)
        return Bypass(channel_dim=-len(windows) - 1, channels=module.out_channels, windows=windows)
    return Bypass()


def tells_its_shape(module: nn.Module) -> bool:
    """Whether the shape of a module's output is known from the module and the shape of its input."""
    return bypass_of(module).channels is not None


def _windows(module: Convolution) -> tuple[Window, ...]:
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding == "same":
        padding = [each - 1 for each in reach]
    elif module.padding == "valid":
        padding = [0] * len(reach)
    else:
        padding = [2 * int(each) for each in module.padding]
    return tuple(zip(reach, padding, module.stride, strict=True))
