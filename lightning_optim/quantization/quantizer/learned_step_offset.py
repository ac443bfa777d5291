"""LSQ+ activations: steps whose size and offset are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.quantizer.learner import Start, UnsignedLearner, Values
from lightning_optim.quantization.rounding.learned_offset import round_to_offset_steps, zero_point_of


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedStepOffset(UnsignedLearner):
    """Unsigned integers of activations, with a trained step and offset (LSQ+; Bhalgat et al., 2020; arXiv:2004.09576).

    For activations with a few negative values, as Swish and GELU have, and sums. Weights are LSQ's (``LearnedStep``),
    as in the paper. Step and offset begin at what the observed range asks for; with the observer ``MeanSquaredError``
    that is the paper's section 3.2. Unlike the paper's, the offset is applied in whole steps: 0 is represented exactly,
    padding costs nothing, and integer kernels know no other. After a ReLU it stays 0, so that they absorb the ReLU.

    Args:
        bits: Width of an integer, 1 to 8.

    Example:
        >>> LearnedStepOffset(bits=2).start(torch.tensor(0.5), torch.tensor(1.0))["offset"].value
        tensor(-0.5000)
    """

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings

    @override
    def start(self, scale: Tensor, zero_point: Tensor) -> dict[str, Start]:
        width = scale * self.scheme.qmax
        unit = torch.where(zero_point == 0, torch.zeros_like(width), width)
        return {"step": Start(value=scale), "offset": Start(value=-zero_point * scale, unit=unit)}

    @override
    def learned_qparams(self, values: Values) -> tuple[Tensor, Tensor]:
        return values["step"], zero_point_of(values["offset"], values["step"], 0, self.scheme.qmax)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        zero = torch.zeros_like(scale) if zero_point is None else zero_point
        num_values = x[:1].numel() or 1
        qmax = self.scheme.qmax
        return round_to_offset_steps(x, scale, zero, 0, qmax, gradient_scale=(num_values * qmax) ** -0.5)
