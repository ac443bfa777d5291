"""Rounding to steps whose size is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_optim.quantization.rounding.fake_quantize import bounds_in_steps


class _RoundToSteps(torch.autograd.Function):
    """Quantizes and dequantizes in one node, with gradients for values and step size."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, gradient_scale: float
    ) -> Tensor:
        steps = x.float() / scale
        low, high = bounds_in_steps(zero_point, qmin, qmax)
        ctx.save_for_backward(steps, scale)
        ctx.settings = low, high, gradient_scale
        return steps.round().clamp_(low, high).mul_(scale).to(x.dtype)  # type: ignore[arg-type]  # both of one kind

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (steps, scale) = gradients, ctx.saved_tensors
        low, high, gradient_scale = ctx.settings
        pull, of_scale = gradient.float(), None
        if ctx.needs_input_grad[1]:
            slope = steps.round().clamp_(low, high).sub_(_where_inside(steps, steps, low, high))
            of_scale = slope.mul_(pull).sum_to_size(scale.shape).mul_(gradient_scale)
        return _where_inside(pull, steps, low, high).to(gradient.dtype), of_scale, None, None, None, None


def _where_inside(values: Tensor, steps: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return values where steps lie strictly between two bounds, and 0 elsewhere."""
    if isinstance(low, Tensor):
        return torch.where((steps > low) & (steps < high), values, 0.0)
    kept: Tensor = torch.ops.aten.hardtanh_backward(values, steps, low, high)  # in one pass, without a mask
    return kept


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
    out: Tensor = _RoundToSteps.apply(x, scale, zero_point, qmin, qmax, gradient_scale)  # type: ignore[no-untyped-call]  # torch's own
    return out
