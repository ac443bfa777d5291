"""LSQ weights: steps whose size is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.functional import SMALLEST_SCALE, quantize, symmetric_scale
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.learned_weight import LearnedWeight
from lightning_optim.quantization.quantizer.learner import Start, Values, WeightLearner
from lightning_optim.quantization.quantizer.level_quantizer import check_granularity
from lightning_optim.quantization.rounding.learned_step import round_to_steps
from lightning_optim.quantization.scheme import Granularity, Scheme


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedStep(WeightLearner):
    """Signed integers of weights, with a step size that is trained (LSQ; Esser et al., 2020; arXiv:1902.08153).

    The step begins at ``2 * mean|w| / sqrt(qmax)`` (section 2.1) and gets the gradient of eq. 3, times
    ``1 / sqrt(N * qmax)`` for the N weights that share it (section 2.2).

    Args:
        bits: Width of an integer, 2 to 8. With 8, processors without VNNI may saturate.
        granularity: ``"tensor"`` or ``"channel"``.
        narrow_range: Use as many integers below 0 as above. ``False`` is the paper's: one more below, which counts at 2
            bits.

    Example:
        >>> LearnedStep(bits=2).weight_scale(torch.tensor([[3.0, -3.0, 0.0]]))
        tensor([4.])
    """

    bits: int = 4
    granularity: Granularity = "channel"
    narrow_range: bool = True

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings
        if self.bits < 2:
            raise ValueError(f"bits of LearnedStep must be 2 to 8, got {self.bits}; take Binary for one bit")
        check_granularity(self.granularity)

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(
            bits=self.bits,
            signed="int",
            symmetric=True,
            granularity=self.granularity,
            narrow_range=self.narrow_range,
        )

    @override
    def start(self, weight: Tensor) -> dict[str, Start]:
        return {"step": Start(value=self.weight_scale(weight))}

    @override
    def bind(self, values: Values) -> Quantizer:
        return LearnedWeight(rule=self, step=values["step"])

    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        magnitudes = weight.detach().abs().float()
        mean = magnitudes.flatten(1).mean(1) if self.granularity == "channel" else magnitudes.mean()
        return (2.0 * mean / math.sqrt(self.scheme.qmax)).clamp(min=SMALLEST_SCALE)

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = symmetric_scale(torch.maximum(-low, high).clamp(min=0.0), self.scheme.qmax)
        return scale, torch.zeros_like(scale)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return quantize(x.float(), scale, zero_point, self.scheme.qmin, self.scheme.qmax)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        qmin, qmax = self.scheme.qmin, self.scheme.qmax
        num_sharing = x.numel() / scale.numel()
        return round_to_steps(x, scale, zero_point, qmin, qmax, gradient_scale=1.0 / math.sqrt(num_sharing * qmax))
