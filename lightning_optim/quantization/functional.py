"""Arithmetic of uniform quantization, with the roundings that integer runtimes use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import handle_torch_function, has_torch_function

SMALLEST_SCALE = 1e-12
_LARGEST_BIAS = 2.0**30  # of the 2 ** 31 of an int32 accumulator, one half is left to the products
_BIAS_RANGE = -(2**31), 2**31 - 128  # int32, as far as float32 tells whole numbers apart


def affine_qparams(low: Tensor, high: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Spread ``[low, high]``, widened to hold 0, over the integers ``[qmin, qmax]``.

    Zero is represented exactly, so that padding and ReLU cost no error (Jacob et al., 2018; arXiv:1712.05877,
    section 2.1).

    Args:
        low: Smallest values; any shape.
        high: Largest values, shaped as ``low``.
        qmin: Smallest integer.
        qmax: Largest integer.

    Returns:
        The scale (> 0) and the zero point (a whole number in ``[qmin, qmax]``, as a float), shaped as ``low``.

    Example:
        >>> scale, zero_point = affine_qparams(torch.tensor(-1.0), torch.tensor(3.0), 0, 255)
        >>> round(scale.item(), 6), zero_point.item()
        (0.015686, 64.0)
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / (qmax - qmin)).clamp(min=SMALLEST_SCALE)
    return scale, torch.clamp(torch.round(qmin - low / scale), qmin, qmax)


def symmetric_scale(max_abs: Tensor, qmax: int) -> Tensor:
    """Return the scale that maps ``[-max_abs, max_abs]`` to ``[-qmax, qmax]``; positive even where ``max_abs`` is 0.

    Example:
        >>> symmetric_scale(torch.tensor([1.27, 2.54]), 127)
        tensor([0.0100, 0.0200])
    """
    return (max_abs / qmax).clamp(min=SMALLEST_SCALE)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return the integers that stand for ``x``, as floats: ``clamp(round(x / scale) + zero_point, qmin, qmax)``.

    The division is exact and ties go to the even neighbour, as in ONNX's ``QuantizeLinear``; a product with
    ``1 / scale`` would differ in a few of ten million values.

    Args:
        x: Values; any shape.
        scale: Step between two integers, > 0; broadcasts against ``x``.
        zero_point: Integer that stands for 0; broadcasts against ``x``.
        qmin: Smallest integer.
        qmax: Largest integer.

    Example:
        >>> quantize(torch.tensor([-9.0, 0.5, 1.5, 9.0]), torch.tensor(1.0), torch.tensor(2.0), 0, 7)
        tensor([0., 2., 4., 7.])
    """
    return (x / scale).round_().add_(zero_point).clamp_(qmin, qmax)


class KeepsInput(torch.autograd.Function):
    """What functions share that take their input again in the backward, and so forbid that it is overwritten."""

    @staticmethod
    def input_of(ctx: Any) -> Tensor:
        """Return the input as it was, of a node that saved it as its first tensor."""
        copied: Tensor | None = getattr(ctx, "copied", None)
        return ctx.saved_tensors[0] if copied is None else copied


def input_keeper(rounded: Tensor) -> Node | None:
    """Return the node of what a quantizer's ``fake`` gave, if its input must not be changed before the backward."""
    node = rounded.grad_fn if holds_values(rounded) else None
    return node if issubclass(getattr(node, "_forward_cls", object), KeepsInput) else None


def allow_overwriting(keeper: Node) -> None:
    """Let the input of a rounding be changed in place before the backward, at the price of a copy.

    Args:
        keeper: What ``input_keeper`` returned; the input has not been changed yet.

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
    keeper.copied = KeepsInput.input_of(keeper).clone()  # type: ignore[attr-defined]  # nodes take attributes


class _FakeQuantize(KeepsInput):
    """Quantize and dequantize in one node; the gradient passes where the value was not clipped.

    Passes over memory cost more than their arithmetic, so there are few: the zero point moves the bounds instead of
    the values, all but the first pass work in place, and the backward takes the input, which is there already.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: _Grid) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid = grid
        return grid.round_(x.float() / grid.scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), x, (low, high) = gradients, KeepsInput.input_of(ctx), ctx.grid.ends
        if isinstance(low, Tensor):
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
        if ctx.saved_tensors:
            (steps,) = ctx.saved_tensors
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
    """Whether a tensor is a plain one; others may be traced, and hold no numbers."""
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


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Return the int32 values that stand for a bias at the accumulator's scale, ``input_scale * weight_scale``.

    Example:
        >>> quantize_bias(torch.tensor([0.26, -1.0]), torch.tensor([0.1, 0.5]))
        tensor([ 3, -2], dtype=torch.int32)
    """
    return quantize(bias.float(), scale, torch.zeros_like(scale), *_BIAS_RANGE).to(torch.int32)


def round_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias to its int32 values, with the gradient of the identity.

    Args:
        bias: Bias of every output channel, ``[O]``.
        scale: The accumulator's scale, ``[O]`` or a scalar.

    Example:
        >>> round_bias(torch.tensor([0.26]), torch.tensor([0.1]))
        tensor([0.3000])
    """
    if has_torch_function((bias, scale)):  # its gradient is not that of its parts
        followed: Tensor = handle_torch_function(round_bias, (bias, scale), bias, scale)
        return followed
    return fake_quantize(bias, scale, None, *_BIAS_RANGE, is_within=True)


def bias_floor(bias: Tensor, input_scale: Tensor) -> Tensor:
    """Return the smallest weight scale at which the bias still fits into half of an int32 accumulator.

    A channel whose weights are all pruned has a scale near 0, and its bias would overflow.

    Example:
        >>> bias_floor(torch.tensor([2.0**20]), torch.tensor(0.5)).item() * 2**9
        1.0
    """
    step = float(input_scale) if is_number(input_scale) else input_scale
    return bias.detach().abs().div_(step * _LARGEST_BIAS)


def value_range(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value, without gradient.

    Example:
        >>> value_range(torch.tensor([1.0, -2.0, 0.5]))
        (tensor(-2.), tensor(1.))
    """
    tensor = tensor.detach()
    if not tensor.is_contiguous() and tensor.dim() == 4:
        tensor = tensor.movedim(1, -1)  # contiguous for channels_last
    if not tensor.is_contiguous():
        return tensor.amin(), tensor.amax()  # on a CPU five times as fast as aminmax, which copies
    low, high = torch.aminmax(tensor)
    return low, high


def channel_range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of every output channel (dimension 0).

    Example:
        >>> channel_range(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
        (tensor([-2.,  0.]), tensor([1., 3.]))
    """
    rows = weight.detach().flatten(1)
    return rows.amin(1), rows.amax(1)  # on a CPU ten times as fast as one aminmax over rows


def channel_extreme(weight: Tensor) -> Tensor:
    """Return the largest absolute value of every output channel (dimension 0).

    Example:
        >>> channel_extreme(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
        tensor([2., 3.])
    """
    low, high = channel_range(weight)
    return torch.maximum(-low, high)


def pair_extreme(weight: Tensor) -> Tensor:
    """Return the largest absolute value of every output channel, with neighbours of one sign counted as one value.

    Processors without VNNI multiply uint8 by int8 in pairs and add the two products in 16 bits, where
    ``255 * 127 + 255 * 127`` saturates. With a scale that maps each sum of a pair into ``[-127, 127]``, no sum of two
    rounded weights leaves ``[-128, 128]``, no pair of products leaves 16 bits, and every processor computes the same.
    Neighbours are input channels at the same place of the kernel: the order in which integer kernels walk a weight.

    Args:
        weight: ``[O, I, ...]``.

    Returns:
        ``[O]``.

    Example:
        >>> pair_extreme(torch.tensor([[1.0, -2.0, 3.0, 2.0], [4.0, -1.0, 0.0, -5.0]]))
        tensor([5., 5.])
    """
    weight = weight.detach()
    rows = weight
    if weight.shape[1] % 2:  # the last input of one place is the neighbour of the first of the next
        rows = weight.movedim(1, -1).flatten(1)
        rows = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2))
    sums = rows[:, ::2] + rows[:, 1::2]
    # Of two values of one sign their sum is the outermost, of two signs one of the values is.
    return torch.maximum(channel_extreme(weight), channel_extreme(sums))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """View ``[O]`` values so that they broadcast along dimension 0 of ``like``; a scalar stays one.

    Values ``[O, G]`` of groups are repeated along dimension 1, ``I / G`` times each.

    Example:
        >>> per_channel(torch.ones(4), torch.ones(4, 3, 2, 2)).shape
        torch.Size([4, 1, 1, 1])
    """
    if values.dim() == 2:
        values = values.repeat_interleave(like.shape[1] // values.shape[1], 1)
        return values.view(*values.shape, *[1] * (like.dim() - 2))
    return values.view(-1, *[1] * (like.dim() - 1)) if values.dim() else values
