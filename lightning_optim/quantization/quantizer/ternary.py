"""Ternary weights (TWN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import SMALLEST_SCALE
from lightning_optim.quantization.quantizer.base import Operand
from lightning_optim.quantization.quantizer.level_quantizer import LevelQuantizer, check_granularity
from lightning_optim.quantization.rounding.levels import ternarize, ternary_scale
from lightning_optim.quantization.scheme import Granularity, Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Ternary(LevelQuantizer):
    """Weights -1, 0 and 1 times a scale (ternary weight networks; Li et al., 2016; arXiv:1605.04711, eq. 3 and 6).

    What is below 0.7 times the mean magnitude becomes 0; the scale is the mean magnitude of the rest. The gradient
    passes straight through.

    Args:
        granularity: ``"tensor"`` or ``"channel"``.

    Example:
        >>> import torch
        >>> Ternary().weight_scale(torch.tensor([[1.0, -2.0, 0.1]]))
        tensor([1.5000])
    """

    serves: ClassVar[frozenset[Operand]] = frozenset({Operand.WEIGHT})
    clips_gradient: ClassVar[bool] = False

    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        check_granularity(self.granularity)

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(bits=2, signed="int", symmetric=True, granularity=self.granularity)

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        return ternary_scale(weight, self.granularity).clamp(min=SMALLEST_SCALE)

    @override
    def levels(self, x: Tensor, scale: Tensor) -> Tensor:
        return ternarize(x / scale, self.granularity)
