"""Minus one and one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.functional import SMALLEST_SCALE
from lightning_optim.quantization.levels import binarize, straight_through
from lightning_optim.quantization.quantizer.base import Operand, Quantizer
from lightning_optim.quantization.scheme import Granularity, Scheme


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Quantizer):
    """Weights -1 and 1 times their mean magnitude (XNOR-Net; Rastegari et al., 2016; arXiv:1603.05279, eq. 4 and 6).

    A weight of 0 becomes positive: pruned weights do not stay zero. The gradient passes straight through.

    Args:
        granularity: ``"tensor"`` or ``"channel"``.

    Example:
        >>> Binary().weight_scale(torch.tensor([[1.0, -2.0, 0.0]]))
        tensor([1.])
    """

    serves: ClassVar[frozenset[Operand]] = frozenset({Operand.WEIGHT})

    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        if self.granularity not in ("tensor", "channel"):
            raise ValueError(f"granularity must be 'tensor' or 'channel', got {self.granularity!r}")

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(bits=1, signed="int", symmetric=True, granularity=self.granularity)

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        magnitudes = weight.detach().abs().float()
        mean = magnitudes.mean() if self.granularity == "tensor" else magnitudes.flatten(1).mean(1)
        return mean.clamp(min=SMALLEST_SCALE)

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.maximum(-low, high).clamp(min=SMALLEST_SCALE)
        return scale, torch.zeros_like(scale)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return binarize(x.float())

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        return straight_through(x, binarize(x.detach().float()), scale)
