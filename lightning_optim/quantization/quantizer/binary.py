"""Binary weights (XNOR-Net)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import SMALLEST_SCALE
from lightning_optim.quantization.quantizer.base import Operand
from lightning_optim.quantization.quantizer.level_quantizer import LevelQuantizer, check_granularity
from lightning_optim.quantization.rounding.levels import binarize
from lightning_optim.quantization.scheme import Granularity, Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(LevelQuantizer):
    """Weights -1 and 1 times their mean magnitude (XNOR-Net; Rastegari et al., 2016; arXiv:1603.05279, eq. 4 and 6).

    A weight of 0 becomes positive: pruned weights do not stay zero. The gradient passes straight through.

    Args:
        granularity: ``"tensor"`` or ``"channel"``.

    Example:
        >>> import torch
        >>> Binary().weight_scale(torch.tensor([[1.0, -2.0, 0.0]]))
        tensor([1.])
    """

    serves: ClassVar[frozenset[Operand]] = frozenset({Operand.WEIGHT})
    clips_gradient: ClassVar[bool] = False

    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        check_granularity(self.granularity)

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
    def levels(self, x: Tensor, scale: Tensor) -> Tensor:
        return binarize(x)
