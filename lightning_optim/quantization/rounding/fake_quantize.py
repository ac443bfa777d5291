"""Rounding to the values of integers in the forward pass, straight through in the backward."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_optim.surgery.torch_private import function_of


class KeepsInput(torch.autograd.Function):
    """What functions share that take their input again in the backward, and so forbid that it is overwritten."""

    @staticmethod
    def input_of(ctx: Any) -> Tensor:
        """Return the input as it was, of a node that saved it, detached, as its first tensor."""
        copied: Tensor | None = getattr(ctx, "copied", None)
        return ctx.saved_tensors[0] if copied is None else copied


def input_keeper(rounded: Tensor) -> Node | None:
    """Return the node of what a quantizer's ``fake`` gave, if its input must not be changed before the backward."""
    node = rounded.grad_fn if holds_values(rounded) else None
    return node if issubclass(function_of(node), KeepsInput) else None


def allow_overwriting(keeper: Node, values: Tensor | None = None) -> None:
    """Let the input of a rounding be changed in place before the backward, at the price of a copy.

    Args:
        keeper: What ``input_keeper`` returned; the input has not been changed yet.
        values: The input; ``None`` asks the node for it, which a checkpoint would compute anew for that.

    Example:
        >>> x = torch.tensor([0.3, 9.0], requires_grad=True)
        >>> doubled = 2.0 * x
        >>> y = fake_quantize(doubled, torch.tensor(0.5), None, -8, 7)
        >>> allow_overwriting(input_keeper(y))
        >>> _ = doubled.zero_()
        >>> y.sum().backward()
        >>> x.grad.tolist()
        [2.0, 0.0]
    """
    with contextlib.suppress(RuntimeError):  # the backward has run already, and freed it
        values = KeepsInput.input_of(keeper) if values is None else values.detach()
        keeper.copied = values.clone()  # type: ignore[attr-defined]  # nodes take attributes


class _FakeQuantize(KeepsInput):
    """Quantize and dequantize in one node; the gradient passes where the value was not clipped.

    Passes over memory cost more than their arithmetic, so there are few: the zero point moves the bounds instead of
    the values, all but the first pass work in place, and the backward takes the input, which is there already.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: _Grid) -> Tensor:
        ctx.save_for_backward(x.detach())  # x itself would hold this node, once it is overwritten: neither were freed
        ctx.grid = grid
        return grid.round_(x.float() / grid.scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), x, (low, high) = gradients, KeepsInput.input_of(ctx), ctx.grid.ends
        if isinstance(low, Tensor):
            x = x.float()  # beside it, bounds without dimensions would be rounded to half precision
            return gradient.masked_fill((x <= low) | (x >= high), 0.0), None
        return torch.ops.aten.hardtanh_backward.default(gradient, x.to(gradient.dtype), low, high), None


class _FakeQuantizeTraced(torch.autograd.Function):
    """The same for tensors that are traced: a graph may overwrite its input later on, so the backward keeps the steps.

    What compiles the graph fuses the passes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, is_within: bool
    ) -> Tensor:
        steps = (x.float() / scale).round_()
        low, high = bounds_in_steps(zero_point, qmin, qmax)
        ctx.save_for_backward(*(() if is_within else (steps,)))
        ctx.bounds = low, high
        return (steps.clamp(low, high) * scale).to(x.dtype)  # type: ignore[arg-type]  # both of one kind

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (low, high) = gradients, ctx.bounds
        saved = ctx.saved_tensors  # read once: a checkpoint computes them anew
        if saved:
            (steps,) = saved
            # 1 where nothing was clipped off these whole numbers, and 0 elsewhere; as booleans it would be kept for the
            # backward, and code that writes them takes twenty times as long on a CPU.
            passes = 1.0 - (steps - steps.clamp(low, high)).abs().clamp(max=1.0)
            gradient = gradient * passes.to(gradient.dtype)
        return gradient, None, None, None, None, None


class _Grid:
    """The values that integers stand for.

    Args:
        scale: Step between two of them.
        low: How many steps the smallest lies from 0.
        high: How many steps the largest lies from 0.
    """

    __slots__ = ("high", "low", "scale")

    def __init__(self, scale: Tensor, low: Tensor | float, high: Tensor | float) -> None:
        self.scale, self.low, self.high = scale, low, high

    @property
    def ends(self) -> tuple[Tensor | float, Tensor | float]:
        """What lies strictly between them is rounded without being clipped: half a step more than the values do."""
        step = float(self.scale) if isinstance(self.low, float) and is_number(self.scale) else self.scale
        return (self.low - 0.5) * step, (self.high + 0.5) * step

    def round_(self, steps: Tensor) -> Tensor:
        """Turn numbers of steps into values, in place."""
        return steps.round_().clamp_(self.low, self.high).mul_(self.scale)  # type: ignore[arg-type]  # both of one kind


def is_number(value: Tensor) -> bool:
    """Whether a tensor is as good as a plain number, which is many times as fast on a CPU."""
    return value.dim() == 0 and value.device.type == "cpu" and holds_values(value)


def holds_values(tensor: Tensor) -> bool:
    """Whether a tensor is of torch's own type; others may be traced, and hold no numbers."""
    return type(tensor) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()


def bounds_in_steps(zero_point: Tensor | None, qmin: int, qmax: int) -> tuple[Tensor | float, Tensor | float]:
    """Return how many steps from 0 the smallest and the largest integer lie."""
    if zero_point is None:
        return float(qmin), float(qmax)
    zero = float(zero_point) if is_number(zero_point) else zero_point
    return qmin - zero, qmax - zero


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, *, is_within: bool = False
) -> Tensor:
    """Round ``x`` to the values that integers can stand for, with a straight-through gradient.

    The gradient is 1 where ``x`` lies within the integers' range, ends included, and 0 where it was clipped
    (Bengio et al., 2013; arXiv:1308.3432). ``scale`` and ``zero_point`` get none.

    Args:
        x: Values; any shape and floating dtype. The arithmetic is in float32.
        scale: Step between two integers, > 0; broadcasts against ``x``.
        zero_point: Integer that stands for 0; broadcasts against ``x``. ``None`` is 0 everywhere, and faster.
        qmin: Smallest integer.
        qmax: Largest integer.
        is_within: The caller knows that every value is within the range: the gradient then needs no memory of ``x``.
            Otherwise ``x`` must not be changed in place before the backward; see ``allow_overwriting``.

    Returns:
        ``(quantize(x) - zero_point) * scale``, shaped and typed as ``x``.

    Example:
        >>> x = torch.tensor([-1.0, 0.26, 9.0], requires_grad=True)
        >>> y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0.0), 0, 7)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.0, 0.5, 3.5], [0.0, 1.0, 0.0])
    """
    out: Tensor
    if not holds_values(x):
        out = _FakeQuantizeTraced.apply(x, scale, zero_point, qmin, qmax, is_within)  # type: ignore[no-untyped-call]  # torch's own
        return out
    scale = scale.detach()
    grid = _Grid(scale, *bounds_in_steps(zero_point, qmin, qmax))
    if not (x.requires_grad and torch.is_grad_enabled()):
        return grid.round_(x.float() / scale).to(x.dtype)
    if is_within:
        out = x.clone()  # which has the gradient of the identity, at less than half of the cost of a node of ours
        values = out.detach()
        rounded = grid.round_(values.float().div_(scale))
        if rounded.dtype != values.dtype:
            values.copy_(rounded)
        return out
    out = _FakeQuantize.apply(x, grid)  # type: ignore[no-untyped-call]  # torch's own
    return out
