"""PACT: activations clipped at a level that is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.quantizer.learner import Start, UnsignedLearner, Values


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ClippingLevel(UnsignedLearner):
    """Unsigned integers of activations, clipped at a trained level (PACT; Choi et al., 2018; arXiv:1805.06085).

    Values in ``[0, alpha]`` are rounded to equal steps (eq. 1 and 2). The level alpha begins at the largest value of
    the observed range and gets a gradient of 1 from what lies above it, of 0 from the rest (eq. 3), so that what was
    clipped pulls it up and the L2 decay pulls it down. The paper clips what a ReLU would put out; where values below 0
    were observed, the zero point stays what the range asks for, alpha is the width of the whole range, and what lies
    below counts as well.

    Args:
        bits: Width of an integer, 1 to 8.
        decay: L2 decay of alpha, at least 0: ``decay * alpha`` is added to its gradient. The paper takes the decay of
            the weights.

    Example:
        >>> ClippingLevel(bits=2).start(torch.tensor(2.0), torch.tensor(0.0))["alpha"].value
        tensor(6.)
    """

    decay: float = 1e-4

    def __post_init__(self) -> None:
        _ = self.scheme  # checks the settings
        if not 0.0 <= self.decay < math.inf:
            raise ValueError(f"decay must be at least 0 and finite, got {self.decay}")

    @override
    def start(self, scale: Tensor, zero_point: Tensor) -> dict[str, Start]:
        fixed = Start(value=zero_point, unit=torch.zeros_like(zero_point))
        return {"alpha": Start(value=scale * self.scheme.qmax, decay=self.decay), "zero_point": fixed}

    @override
    def learned_qparams(self, values: Values) -> tuple[Tensor, Tensor]:
        return values["alpha"] / self.scheme.qmax, values["zero_point"]

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        zero = torch.zeros_like(scale) if zero_point is None else zero_point
        out: Tensor = _Clip.apply(x, scale, zero, self.scheme.qmax)  # type: ignore[no-untyped-call]  # torch's own
        return out


class _Clip(torch.autograd.Function):
    """Clips and rounds in one node, with gradients for values and, from what was clipped alone, for the step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmax: int) -> Tensor:
        steps = x.float() / scale
        low, high = -zero_point, qmax - zero_point
        ctx.save_for_backward(steps < low, steps >= high, low, high)
        return steps.round_().clamp_(low, high).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (is_below, is_above, low, high) = gradients, ctx.saved_tensors
        of_scale = None
        if ctx.needs_input_grad[1]:
            wide = gradient.float()
            of_scale = (wide * is_above).sum() * high + (wide * is_below).sum() * low
        return gradient.masked_fill(is_below | is_above, 0.0), of_scale, None, None
