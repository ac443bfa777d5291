"""Arithmetic of uniform quantization, with the roundings that integer runtimes use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from lightning_optim.quantization.rounding.fake_quantize import fake_quantize, is_number

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
