"""Power-of-two (logarithmic) quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.quantizer.base import Operand, range_scale
from lightning_optim.quantization.quantizer.level_quantizer import LevelQuantizer
from lightning_optim.quantization.rounding.levels import nearest_level
from lightning_optim.quantization.scheme import Granularity, Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOfTwo(LevelQuantizer):
    """Zero and powers of two of both signs (Miyashita et al., 2016; arXiv:1603.01025), each value to the nearest.

    Of b bits one is the sign; ``2 ** (b - 1) - 1`` exponents are left. The 7 of 4 bits fit into int8: -64 to 64.

    Args:
        bits: Width of a value's code, 2 to 4; with 5 the smallest level would be ``2 ** -14`` of the largest.
        granularity: ``"tensor"`` or ``"channel"``; ``"token"`` for activations.

    Example:
        >>> quantizer = PowerOfTwo()
        >>> quantizer.integers(torch.tensor([0.9, -0.3, 0.0]), torch.tensor(1 / 64), torch.tensor(0.0))
        tensor([ 64., -16.,   0.])
    """

    serves: ClassVar[frozenset[Operand]] = frozenset(Operand)
    clips_gradient: ClassVar[bool] = True

    bits: int = 4
    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings
        if not 2 <= self.bits <= 4:
            raise ValueError(f"bits of powers of two must be 2, 3 or 4, got {self.bits}")

    @property
    @override
    def scheme(self) -> Scheme:
        largest = 1 << (2 ** (min(self.bits, 4) - 1) - 2) if self.bits > 1 else 0
        return Scheme(bits=self.bits, signed="int", symmetric=True, granularity=self.granularity, limit=largest)

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return range_scale(self, weight)

    @override
    def levels(self, x: Tensor, scale: Tensor) -> Tensor:
        levels = [0.0, *(2.0**exponent for exponent in range(2 ** (self.bits - 1) - 1))]
        return nearest_level(x / scale, torch.tensor(levels))
