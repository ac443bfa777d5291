"""Weights of a linear layer as ``MatMulNBits`` reads them: few bits, and a scale for every block of inputs."""

# O outputs, I inputs, G groups of inputs, B blocks

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from lightning_optim.errors import ExportError

_SIZES = (16, 32, 64, 128)  # numbers of inputs in a block that the kernel can read
_SCALE_BYTES = 4


@final
@dataclass(frozen=True, slots=True)
class Blocks:
    """Packed weight of a linear layer.

    Args:
        packed: Integers from 0 upwards, the first in the lowest bits, ``[O, B, size * bits / 8]`` of uint8.
        scale: ``[O, B]``.
        size: Number of inputs in a block.
        bits: Width of an integer: 2, 4 or 8; half of the range stands for 0.
    """

    packed: Tensor
    scale: Tensor
    size: int
    bits: int


def pack_blocks(integers: Tensor, scale: Tensor, narrowest: int = 2) -> Blocks:
    """Pack the integers of a weight.

    A group that is not as long as a block becomes several blocks with the same scale.

    Args:
        integers: Integers, ``[O, I]``, in ``[-128, 127]``.
        scale: ``[O, G]``, ``[O]`` or a scalar.
        narrowest: Fewest bits to use: 2, 4 or 8.

    Raises:
        ExportError: If there are several groups, and 16 does not divide their number of inputs.

    Example:
        Two bits are enough. Each integer is stored plus 2, as 3, 0, 2 and 3, and four of them fill one byte:
        ``3 + 4 * 0 + 16 * 2 + 64 * 3 = 227``. The other 12 inputs of the block are padding of 0, stored as 2.

        >>> pack_blocks(torch.tensor([[1, -2, 0, 1]]), torch.tensor([0.5])).packed.tolist()
        [[[227, 170, 170, 170]]]
    """
    num_outputs, num_inputs = integers.shape
    groups = scale if scale.dim() == 2 else scale.expand(num_outputs).unsqueeze(1)
    low, high = int(integers.min()), int(integers.max())
    bits = next(bits for bits in (2, 4, 8) if bits >= narrowest and -(1 << bits - 1) <= low and high < 1 << bits - 1)
    size = _block_size(num_inputs, groups.shape[1], bits)
    num_blocks = -(-num_inputs // size)
    codes = functional.pad(integers.long(), (0, num_blocks * size - num_inputs)) + (1 << bits - 1)
    codes = codes.view(num_outputs, num_blocks, -1, 8 // bits)
    packed = (codes << torch.arange(0, 8, bits)).sum(-1).to(torch.uint8)
    return Blocks(packed, groups.repeat_interleave(num_blocks // groups.shape[1], 1), size, bits)


def unpack_blocks(packed: Tensor, scale: Tensor, num_inputs: int, bits: int) -> Tensor:
    """Return the weight that ``pack_blocks`` packed, ``[O, I]``.

    Example:
        >>> blocks = pack_blocks(torch.tensor([[1, -2, 0, 1]]), torch.tensor([0.5]))
        >>> unpack_blocks(blocks.packed, blocks.scale, 4, blocks.bits)
        tensor([[ 0.5000, -1.0000,  0.0000,  0.5000]])
    """
    codes = (packed.long().unsqueeze(-1) >> torch.arange(0, 8, bits)) & ((1 << bits) - 1)
    integers = (codes - (1 << bits - 1)).flatten(2)
    return (integers * scale.unsqueeze(-1)).flatten(1)[:, :num_inputs]


def _block_size(num_inputs: int, num_groups: int, bits: int) -> int:
    """Number of inputs in a block, for the fewest bytes; where there are several groups, it divides theirs."""
    group = num_inputs // num_groups
    sizes = [size for size in _SIZES if num_groups == 1 or group % size == 0]
    if not sizes:
        raise ExportError(
            f"ONNX Runtime's packed linear layers need groups of a multiple of {_SIZES[0]} inputs, got {group}; "
            "choose another group_size, or leave the layer out with targets.exclude"
        )
    return min(sizes, key=lambda size: -(-num_inputs // size) * (size * bits // 8 + _SCALE_BYTES))
