"""Uniform steps around 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.functional import channel_extreme, pair_extreme, symmetric_scale
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.scheme import Granularity, Scheme


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetric(Quantizer):
    """Signed integers without a zero point: a weight that is 0 stays 0.

    See Krishnamoorthi, 2018 (arXiv:1806.08342), section 2.2.

    Args:
        bits: Width of an integer, 2 to 8.
        granularity: ``"tensor"`` or ``"channel"``.
        portable: Keep 8-bit weights free of the saturation that processors without VNNI add, at the price of up to one
            bit; see ``lightning_optim.quantization.functional.pair_extreme``. Fewer bits never saturate.

    Example:
        >>> Symmetric().qparams(torch.tensor([-1.27]), torch.tensor([0.5]))
        (tensor([0.0100]), tensor([0.]))
    """

    bits: int = 8
    granularity: Granularity = "channel"
    portable: bool = True

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(bits=self.bits, signed="int", symmetric=True, granularity=self.granularity)

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        extreme = (pair_extreme if self.portable and self.bits == 8 else channel_extreme)(weight)
        return symmetric_scale((extreme if self.granularity == "channel" else extreme.max()).float(), self.scheme.qmax)

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = symmetric_scale(torch.maximum(-low, high).clamp(min=0.0), self.scheme.qmax)
        return scale, torch.zeros_like(scale)
