"""Affine (asymmetric) quantizer: uniform steps with a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import affine_qparams, quantize
from lightning_optim.quantization.quantizer.base import ActivationQuantizer
from lightning_optim.quantization.rounding.fake_quantize import fake_quantize
from lightning_optim.quantization.scheme import Granularity, Scheme, find_scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Affine(ActivationQuantizer):
    """Unsigned integers from 0, with the zero point where 0 falls (Jacob et al., 2018; arXiv:1712.05877, eq. 1).

    After a ReLU the zero point is 0, which lets integer runtimes absorb the ReLU. Weights have none: theirs would cost
    integer kernels a sum over every input.

    Args:
        bits: Width of an integer, 1 to 8.
        granularity: ``"tensor"``, or ``"token"``.

    Example:
        >>> import torch
        >>> Affine().qparams(torch.tensor(0.0), torch.tensor(2.55))
        (tensor(0.0100), tensor(0.))
    """

    bits: int = 8
    granularity: Granularity = "tensor"

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings

    @property
    @override
    def scheme(self) -> Scheme:
        return find_scheme(bits=self.bits, signed="uint", symmetric=False, granularity=self.granularity)

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return affine_qparams(low, high, 0, self.scheme.qmax)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return quantize(x.float(), scale, zero_point, self.scheme.qmin, self.scheme.qmax)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        return fake_quantize(x, scale, zero_point, self.scheme.qmin, self.scheme.qmax, is_within=is_within)
