"""LSQ activations: steps whose size is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.quantizer.learner import Start, UnsignedLearner, Values
from lightning_optim.quantization.rounding.learned_step import round_to_steps


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedStepAffine(UnsignedLearner):
    """Unsigned integers of activations, with a step size that is trained (LSQ; Esser et al., 2020; arXiv:1902.08153).

    Step and zero point begin at what the observed range asks for; the zero point then stays. After a ReLU it is 0,
    which is the paper's unsigned case. The step gets the gradient of eq. 3, times ``1 / sqrt(N * qmax)`` for N values a
    sample (section 2.2).

    Args:
        bits: Width of an integer, 1 to 8.

    Example:
        >>> LearnedStepAffine().qparams(torch.tensor(0.0), torch.tensor(2.55))
        (tensor(0.0100), tensor(0.))
    """

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings

    @override
    def start(self, scale: Tensor, zero_point: Tensor) -> dict[str, Start]:
        return {"step": Start(value=scale), "zero_point": Start(value=zero_point, unit=torch.zeros_like(zero_point))}

    @override
    def learned_qparams(self, values: Values) -> tuple[Tensor, Tensor]:
        return values["step"], values["zero_point"]

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        num_values = x[:1].numel() or 1
        qmin, qmax = self.scheme.qmin, self.scheme.qmax
        return round_to_steps(x, scale, zero_point, qmin, qmax, gradient_scale=(num_values * qmax) ** -0.5)
