"""Rounding to steps whose size is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RoundToSteps(torch.autograd.Function):
    """Quantizes and dequantizes in one node, with gradients for values and step size."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, gradient_scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = qmin, qmax, gradient_scale
        steps = (x.float() / scale).round_()
        return steps.clamp_(qmin - zero_point, qmax - zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, scale, zero_point) = gradients, ctx.saved_tensors
        qmin, qmax, gradient_scale = ctx.settings
        steps, low, high = x.float() / scale, qmin - zero_point, qmax - zero_point
        is_inside = (steps > low) & (steps < high)
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(is_inside, steps.round() - steps, steps.clamp(low, high))
            of_scale = slope.mul_(gradient.float()).sum_to_size(scale.shape).mul_(gradient_scale)
        return gradient * is_inside, of_scale, None, None, None, None


def round_to_steps(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, *, gradient_scale: float = 1.0
) -> Tensor:
    """Round ``x`` to the values that integers can stand for; values and step size get gradients.

    See Esser et al., 2020 (arXiv:1902.08153), eq. 1 to 3 and 5: a value strictly within the integers' range passes its
    gradient on, and adds ``round(x / scale) - x / scale`` to that of the step; a clipped one adds its integer.

    Args:
        x: Values; any shape and floating dtype. The arithmetic is in float32.
        scale: Step between two integers, > 0; broadcasts against ``x``.
        zero_point: Integer that stands for 0; broadcasts against ``x``. ``None`` is 0.
        qmin: Smallest integer.
        qmax: Largest integer.
        gradient_scale: Multiplies the gradient of the step.

    Returns:
        ``(quantize(x) - zero_point) * scale``, shaped and typed as ``x``.

    Example:
        >>> step = torch.tensor(0.5, requires_grad=True)
        >>> round_to_steps(torch.tensor([0.25, 0.9, 9.0]), step, None, 0, 7).sum().backward()
        >>> round(step.grad.item(), 4)  # -0.5 + 0.2 + 7
        6.7
    """
    zero = torch.zeros_like(scale) if zero_point is None else zero_point
    out: Tensor = _RoundToSteps.apply(x, scale, zero, qmin, qmax, gradient_scale)  # type: ignore[no-untyped-call]  # torch's own
    return out
