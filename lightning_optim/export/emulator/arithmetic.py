"""Arithmetic of ONNX Runtime's integer kernels, bit for bit.

Accumulators are exact, so that only what follows them can differ between two ways to compute one formula:

- Products (``QLinearConv``, ``QGemm``, ``QLinearMatMul``) and the average of a whole image: the accumulator becomes a
  float32, is multiplied by one float32 (a product with ``1 / scale`` may differ), clamped, rounded half to even, and
  **then** the zero point is added.
- Sums (``QLinearAdd``): the zero points are part of a constant that enters **before** rounding, so ties are rounded
  the other way if the zero point is odd; and each of the two products is fused with the addition that follows it, so
  that both are rounded once. The first product of the constant itself is fused, too. With separate roundings, about
  two of a million sums give another integer.
- Windows (``QLinearAveragePool``): averaged in float32, value by value, and rounded with the zero point added before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from lightning_optim.quantization.functional import quantize


@final
@dataclass(frozen=True, slots=True)
class QuantizationParameters:
    """Quantization parameters of a tensor: the values that its integers stand for.

    Args:
        scale: Step between two integers, float32; a scalar, or broadcastable against the integers.
        zero_point: Integer that stands for 0, a float32 shaped as ``scale``.
        low: Smallest integer.
        high: Largest integer.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    def quantize(self, x: Tensor) -> Integers:
        """Round values as ``QuantizeLinear`` does."""
        return Integers(quantize(x, self.scale, self.zero_point, self.low, self.high), self)


@final
@dataclass(frozen=True, slots=True)
class Integers:
    """Integer tensor, and its quantization parameters.

    Args:
        integers: The numbers, as floats; any shape.
        qparams: Their quantization parameters.

    Example:
        >>> qparams = QuantizationParameters(torch.tensor(0.5), torch.tensor(3.0), 0, 255)
        >>> Integers(torch.tensor([3.0, 5.0]), qparams).values()
        tensor([0., 1.])
    """

    integers: Tensor
    qparams: QuantizationParameters

    def values(self) -> Tensor:
        """Return the values as ``DequantizeLinear`` does."""
        return (self.integers - self.qparams.zero_point) * self.qparams.scale

    def centred(self) -> Tensor:
        """Return the integers minus the zero point in float64, where sums of their products are exact."""
        return (self.integers - self.qparams.zero_point).double()


def requantize(accumulator: Tensor, multiplier: Tensor, qparams: QuantizationParameters) -> Integers:
    """Requantize an accumulator: scale, clamp, round, and only then add the zero point.

    Args:
        accumulator: Exact sums of products in float64; any shape.
        multiplier: Accumulator's scale over the output's, float32; broadcasts against ``accumulator``.
        qparams: Quantization parameters of the output, with a scale per tensor.

    Example:
        1.0 is scaled to 0.5, a tie, which rounds to the even 0; plus the zero point, that is 3.

        >>> qparams = QuantizationParameters(torch.tensor(1.0), torch.tensor(3.0), 0, 255)
        >>> requantize(torch.tensor([1.0, 3.0, 1e6]).double(), torch.tensor(0.5), qparams).integers
        tensor([  3.,   5., 255.])
    """
    steps = accumulator.float() * multiplier
    clamped = torch.minimum(torch.maximum(steps, qparams.low - qparams.zero_point), qparams.high - qparams.zero_point)
    return Integers(clamped.round_() + qparams.zero_point, qparams)


def output_multiplier(left_scale: Tensor, right_scale: Tensor, qparams: QuantizationParameters) -> Tensor:
    """Return the multiplier of a sum of products: ``(left_scale * right_scale) / output_scale``, in float32."""
    return (left_scale * right_scale) / qparams.scale


def add(left: Integers, right: Integers, qparams: QuantizationParameters) -> Integers:
    """Add two integer tensors with fused multiply-adds, as ``QLinearAdd`` does on processors with AVX2.

    ``fma(a, r_a, fma(b, r_b, c))`` with ``r_a = s_a / s``, ``r_b = s_b / s`` and
    ``c = z - fma(r_a, z_a, r_b * z_b)``, rounded half to even.

    Args:
        left: First summand, with a scale per tensor.
        right: Second summand, with a scale per tensor; broadcasts.
        qparams: Quantization parameters of the output.

    Example:
        The integer 1 of ``zero`` stands for 0, since its zero point is 1. ``0.5 + 0`` plus the output's zero point is
        1.5, a tie, which rounds to the even 2; ``1 + 0`` plus the zero point is 2.

        >>> qparams = QuantizationParameters(torch.tensor(1.0), torch.tensor(1.0), 0, 255)
        >>> halves = QuantizationParameters(torch.tensor(0.5), torch.tensor(0.0), 0, 255)
        >>> summands, zero = Integers(torch.tensor([1.0, 2.0]), halves), Integers(torch.tensor([1.0]), qparams)
        >>> add(summands, zero, qparams).integers
        tensor([2., 2.])
    """
    left_ratio, right_ratio = left.qparams.scale / qparams.scale, right.qparams.scale / qparams.scale
    offset = _fused(left_ratio, left.qparams.zero_point, right_ratio * right.qparams.zero_point)
    inner = _fused(right.integers, right_ratio, qparams.zero_point - offset)
    return Integers(_fused(left.integers, left_ratio, inner).round_().clamp_(qparams.low, qparams.high), qparams)


def average_image(x: Integers, qparams: QuantizationParameters) -> Integers:
    """Average over height and width as ``QLinearGlobalAveragePool`` does, ``[N, C, H, W]`` to ``[N, C, 1, 1]``.

    Args:
        x: ``[N, C, H, W]``, with a scale per tensor.
        qparams: Quantization parameters of the output.
    """
    size = x.integers.shape[2:].numel()
    total = x.centred().sum(tuple(range(2, x.integers.dim())), keepdim=True)
    return requantize(total, x.qparams.scale / (qparams.scale * float(size)), qparams)


def average_windows(
    x: Integers,
    qparams: QuantizationParameters,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    *,
    counts_padding: bool,
) -> Integers:
    """Average windows as ``QLinearAveragePool`` does.

    Args:
        x: ``[N, C, H, W]``, with a scale per tensor.
        qparams: Quantization parameters of the output.
        kernel: Height and width of a window.
        stride: Steps between windows.
        padding: Rows above and columns left of the image, rows below and columns right of it.
        counts_padding: Whether a window's sum is divided by its full size where the window reaches beyond the image.
    """
    top, left, bottom, right = padding
    sides = (left, right, top, bottom)
    windows = functional.pad(x.values(), sides).unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
    total = torch.zeros_like(windows[..., 0, 0])
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            total = total + windows[..., row, column]  # in the kernel's order: sums of floats depend on it
    inside = functional.pad(torch.ones_like(x.integers[:1, :1]), sides, value=float(counts_padding))
    counts = inside.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).sum((-1, -2))
    steps = (total / counts) / qparams.scale + qparams.zero_point
    return Integers(steps.round_().clamp_(qparams.low, qparams.high), qparams)


def _fused(factor: Tensor, other: Tensor, summand: Tensor) -> Tensor:
    """``factor * other + summand`` of float32, rounded once: products of two float32 are exact in float64."""
    return (factor.double() * other.double() + summand.double()).float()
