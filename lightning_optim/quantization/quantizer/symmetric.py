"""Symmetric quantizer: uniform steps around 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import channel_extreme, pair_extreme, quantize, symmetric_scale
from lightning_optim.quantization.quantizer.base import Operand, Quantizer
from lightning_optim.quantization.rounding.fake_quantize import fake_quantize
from lightning_optim.quantization.rounding.levels import binarize, group_extreme, straight_through
from lightning_optim.quantization.scheme import Granularity, Scheme, find_scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetric(Quantizer):
    """Signed integers without a zero point: a weight that is 0 stays 0.

    See Krishnamoorthi, 2018 (arXiv:1806.08342), section 2.2.

    Args:
        bits: Width of an integer, 1 to 8. One bit is the sign, times half of the largest magnitude.
        granularity: ``"tensor"`` or ``"channel"``; ``"group"`` for weights, ``"token"`` for activations.
        group_size: Input channels that share a scale, for ``"group"``; a layer with fewer is one group.
        portable: Keep 8-bit weights free of the saturation that processors without VNNI add, at the price of up to one
            bit; see ``lightning_optim.quantization.functional.pair_extreme``. Fewer bits never saturate.
        narrow_range: Leave the most negative integer out: -127 to 127 of 8 bits. ``False`` is for activations, where a
            runtime clips at -128.

    Example:
        >>> Symmetric().qparams(torch.tensor([-1.27]), torch.tensor([0.5]))
        (tensor([0.0100]), tensor([0.]))
    """

    serves: ClassVar[frozenset[Operand]] = frozenset(Operand)

    bits: int = 8
    granularity: Granularity = "channel"
    group_size: int = 0
    portable: bool = True
    narrow_range: bool = True

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings
        if (self.group_size > 0) != (self.granularity == "group") or self.group_size < 0:
            raise ValueError(
                f"group_size must be positive for granularity='group' and 0 otherwise, got {self.group_size} "
                f"for {self.granularity!r}"
            )

    @property
    @override
    def scheme(self) -> Scheme:
        return find_scheme(
            bits=self.bits,
            signed="int",
            symmetric=True,
            granularity=self.granularity,
            narrow_range=self.narrow_range,
        )

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        if self.granularity == "group":
            return self._scale(group_extreme(weight, self.group_size).float())
        extreme = (pair_extreme if self.portable and self.bits == 8 else channel_extreme)(weight)
        return self._scale((extreme if self.granularity == "channel" else extreme.max()).float())

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if self.narrow_range:
            scale = self._scale(torch.maximum(-low, high).clamp(min=0.0))
        else:
            scale = torch.maximum(symmetric_scale(-low, -self.scheme.qmin), symmetric_scale(high, self.scheme.qmax))
        return scale, torch.zeros_like(scale)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        if self.bits == 1:
            return binarize(x.float())
        return quantize(x.float(), scale, zero_point, self.scheme.qmin, self.scheme.qmax)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        if self.bits == 1:
            return straight_through(x, binarize(x.detach().float()), scale, None if is_within else 2.0 * scale)
        return fake_quantize(x, scale, zero_point, self.scheme.qmin, self.scheme.qmax, is_within=is_within)

    def _scale(self, extreme: Tensor) -> Tensor:
        # Two values stand in the middles of the two halves of the range.
        return symmetric_scale(extreme, 2 if self.bits == 1 else self.scheme.qmax)
