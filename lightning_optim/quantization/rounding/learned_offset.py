"""Rounding to steps whose size and whose offset are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_optim.quantization.rounding.fake_quantize import KeepsInput


class _RoundToOffsetSteps(KeepsInput):
    """Quantizes and dequantizes in one node, with gradients for values, step size and zero point."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, gradient_scale: float
    ) -> Tensor:
        ctx.save_for_backward(x.detach())
        ctx.values = scale, zero_point
        ctx.settings = qmin, qmax, gradient_scale
        steps = (x.float() / scale).round_()
        return steps.clamp_(qmin - zero_point, qmax - zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), x, (scale, zero_point) = gradients, KeepsInput.input_of(ctx), ctx.values
        qmin, qmax, gradient_scale = ctx.settings
        places = x.float() / scale + zero_point
        is_inside = (places > qmin) & (places < qmax)
        of_scale = of_zero_point = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(is_inside, places.round() - places, places.clamp(qmin, qmax))
            of_scale = slope.mul_(gradient.float()).sum_to_size(scale.shape).mul_(gradient_scale)
        if ctx.needs_input_grad[2]:
            clipped = gradient.float().masked_fill(is_inside, 0.0).sum_to_size(zero_point.shape)
            of_zero_point = clipped.mul_(-gradient_scale * scale)
        return gradient * is_inside, of_scale, of_zero_point, None, None, None


class _ZeroPoint(torch.autograd.Function):
    """Rounds and clamps; the gradient passes straight through, but not to where the clamp would undo it."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, qmin: int, qmax: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.bounds = qmin, qmax
        return place.round().clamp_(qmin, qmax)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (place,) = gradients, ctx.saved_tensors
        qmin, qmax = ctx.bounds
        is_stuck = ((place <= qmin) & (gradient > 0)) | ((place >= qmax) & (gradient < 0))
        return gradient.masked_fill(is_stuck, 0.0), None, None


def round_to_offset_steps(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, gradient_scale: float = 1.0
) -> Tensor:
    """Round ``x`` to the values that integers can stand for; values, step size and zero point get gradients.

    See Bhalgat et al., 2020 (arXiv:2004.09576), section 3.1, whose offset is ``(qmin - zero_point) * scale``: a value
    strictly within the range passes its gradient on, and adds ``round(u) - u`` to that of the step, with
    ``u = x / scale + zero_point``; a clipped one adds its integer to that of the step, and 1 to that of the offset,
    which is ``-scale`` of the zero point's.

    Args:
        x: Values; any shape and floating dtype. The arithmetic is in float32.
        scale: Step between two integers, > 0; a scalar.
        zero_point: Integer that stands for 0, a scalar.
        qmin: Smallest integer.
        qmax: Largest integer.
        gradient_scale: Multiplies the gradients of step and zero point.

    Returns:
        ``(quantize(x) - zero_point) * scale``, shaped and typed as ``x``.

    Example:
        >>> step, zero_point = torch.tensor(0.5, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        >>> round_to_offset_steps(torch.tensor([0.25, 0.9, 9.0]), step, zero_point, 0, 7).sum().backward()
        >>> round(step.grad.item(), 4), zero_point.grad.item()  # -0.5 + 0.2 + 7, and one was clipped
        (6.7, -0.5)
    """
    out: Tensor = _RoundToOffsetSteps.apply(x, scale, zero_point, qmin, qmax, gradient_scale)  # type: ignore[no-untyped-call]  # torch's own
    return out


def zero_point_of(offset: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return the whole number that stands for 0 where ``qmin`` stands for ``offset``, as nearly as steps allow.

    The offset gets a gradient, ``-1 / scale`` of the zero point's, unless it would leave the integers' range.

    Args:
        offset: Smallest value that is not clipped; any shape.
        scale: Step between two integers, > 0, shaped as ``offset``; gets no gradient.
        qmin: Smallest integer.
        qmax: Largest integer.

    Example:
        >>> zero_point_of(torch.tensor([-1.1, 0.3]), torch.tensor([0.5, 0.5]), 0, 7)
        tensor([2., 0.])
    """
    place = qmin - offset / scale.detach()
    out: Tensor = _ZeroPoint.apply(place, qmin, qmax)  # type: ignore[no-untyped-call]  # torch's own
    return out
