"""DoReFa activations: clipped to ``[0, 1]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import quantize
from lightning_optim.quantization.quantizer.base import ActivationQuantizer
from lightning_optim.quantization.rounding.fake_quantize import fake_quantize
from lightning_optim.quantization.scheme import Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class UnitInterval(ActivationQuantizer):
    """Activations clipped to ``[0, 1]``, in equal steps (Zhou et al., 2016; arXiv:1606.06160, eq. 5 and 11).

    Args:
        bits: Width of an integer, 1 to 8.

    Example:
        >>> UnitInterval(bits=2).qparams(torch.tensor(-1.0), torch.tensor(6.0))
        (tensor(0.3333), tensor(0.))
    """

    bits: int = 8

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(bits=self.bits, signed="uint", symmetric=False, granularity="tensor")

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.full_like(low, 1.0 / self.scheme.qmax)
        return scale, torch.zeros_like(scale)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return quantize(x.float(), scale, zero_point, self.scheme.qmin, self.scheme.qmax)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        return fake_quantize(x, scale, zero_point, self.scheme.qmin, self.scheme.qmax, is_within=is_within)
