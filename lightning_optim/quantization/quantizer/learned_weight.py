"""Quantizer of one weight with a learned step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.quantizer.base import FixedScaleQuantizer, Quantizer
from lightning_optim.quantization.scheme import Scheme


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnedWeight(FixedScaleQuantizer):
    """A quantizer with the step that was learned for one weight.

    Args:
        rule: The quantizer.
        step: Its step, ``[O]`` or a scalar.
    """

    rule: Quantizer
    step: Tensor

    @property
    @override
    def scheme(self) -> Scheme:
        return self.rule.scheme

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return self.step

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.rule.qparams(low, high)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return self.rule.integers(x, scale, zero_point)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        return self.rule.fake(x, scale, zero_point, is_within=is_within)
