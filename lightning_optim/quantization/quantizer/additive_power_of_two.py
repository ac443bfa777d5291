"""Additive powers of two (APoT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.quantizer.base import Operand, range_scale
from lightning_optim.quantization.quantizer.level_quantizer import LevelQuantizer
from lightning_optim.quantization.rounding.levels import additive_powers, nearest_level
from lightning_optim.quantization.scheme import Granularity, Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class AdditivePowerOfTwo(LevelQuantizer):
    """Sums of a few powers of two, of both signs (Li et al., 2020; arXiv:1909.13144, eq. 5), each value to the nearest.

    Powers of two alone are needlessly dense near 0; sums of them are not. One bit is the sign, the others make
    ``(bits - 1) / base_bits`` terms. With one bit a term the levels are uniform, with one term they are powers of two.

    Args:
        bits: Width of a value's code, 2 to 8.
        base_bits: Bits of one term; divides ``bits - 1``.
        granularity: ``"tensor"`` or ``"channel"``; ``"token"`` for activations.

    Example:
        >>> AdditivePowerOfTwo(bits=5).scheme.qmax
        48
    """

    serves: ClassVar[frozenset[Operand]] = frozenset(Operand)
    clips_gradient: ClassVar[bool] = True

    bits: int = 5
    base_bits: int = 2
    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        if self.base_bits < 1 or self.bits < 2 or (self.bits - 1) % self.base_bits:
            raise ValueError(
                f"base_bits must divide the {self.bits - 1} bits beside the sign, got {self.base_bits}; "
                "take bits=3 or 5 with base_bits=2"
            )
        if self._num_terms * self._num_exponents > 15:
            raise ValueError(f"bits={self.bits} with base_bits={self.base_bits} spans more than 15 powers of two")
        _ = self.scheme  # checks the settings

    @property
    @override
    def scheme(self) -> Scheme:
        largest = additive_powers(self._num_terms, self._num_exponents)[-1]
        return Scheme(bits=self.bits, signed="int", symmetric=True, granularity=self.granularity, limit=largest)

    @property
    def _num_terms(self) -> int:
        return (self.bits - 1) // self.base_bits

    @property
    def _num_exponents(self) -> int:
        return int(2**self.base_bits) - 1

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return range_scale(self, weight)

    @override
    def levels(self, x: Tensor, scale: Tensor) -> Tensor:
        levels = torch.tensor(additive_powers(self._num_terms, self._num_exponents), dtype=torch.float32)
        return nearest_level(x / scale, levels)
