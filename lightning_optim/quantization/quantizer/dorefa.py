"""DoReFa weights: bent by a hyperbolic tangent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.quantizer.base import FixedScaleQuantizer
from lightning_optim.quantization.rounding.levels import squash, straight_through
from lightning_optim.quantization.scheme import Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class DoReFa(FixedScaleQuantizer):
    """Weights in ``[-1, 1]`` after a tanh, at odd multiples of one scale (Zhou et al., 2016; arXiv:1606.06160, eq. 9).

    ``2 * round(N * (tanh(w) / (2 max |tanh(w)|) + 1/2)) - N`` with ``N = 2 ** bits - 1`` is the integer, ``1 / N`` the
    scale. Zero is no level. The magnitude of a layer is lost: a normalization should follow it. Integers of 8 bits
    reach 255 and fit into no int8.

    Args:
        bits: Width of a value's code, 2 to 8; for 1 take ``Binary(granularity="tensor")``, which is eq. 7.

    Example:
        >>> DoReFa(bits=2).integers(torch.tensor([[0.5, -0.5, 0.1]]), torch.tensor(1 / 3), torch.tensor(0.0))
        tensor([[ 3., -3.,  1.]])
    """

    bits: int = 4

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings
        if self.bits < 2:
            raise ValueError("bits must be at least 2; take Binary(granularity='tensor') for 1")

    @property
    @override
    def scheme(self) -> Scheme:
        largest = (1 << self.bits) - 1 if isinstance(self.bits, int) and self.bits > 0 else 0
        return Scheme(bits=self.bits, signed="int", symmetric=True, granularity="tensor", limit=largest)

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return torch.tensor(1.0 / self.scheme.qmax, device=weight.device)

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.full_like(low, 1.0 / self.scheme.qmax)
        return scale, torch.zeros_like(scale)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return self._round(squash(self._unfolded(x, scale)))

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        bent = squash(self._unfolded(x, scale))
        spread = bent * (scale * self.scheme.qmax)  # has the gradient of the tanh
        return straight_through(spread, self._round(bent.detach()), scale).to(x.dtype)

    def _unfolded(self, x: Tensor, scale: Tensor) -> Tensor:
        """Take the factor of a folded batch norm, which is in both, out of a weight again."""
        return x.float() / (scale * self.scheme.qmax)

    def _round(self, bent: Tensor) -> Tensor:
        largest = self.scheme.qmax
        return 2.0 * torch.round(largest * (bent / 2.0 + 0.5)) - largest
