"""ONNX operators on integers, as ONNX Runtime fuses and computes them."""

# M rows, K summed dimension, N columns

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_optim.errors import ArtefactError
from lightning_optim.export.emulator.arithmetic import (
    Integers,
    QuantizationParameters,
    add,
    average_image,
    average_windows,
    output_multiplier,
    requantize,
)
from lightning_optim.optional import require

IntegerOperator = Callable[[Any, tuple[Integers, ...], QuantizationParameters], Integers]


def float_product(node: Any, inputs: tuple[Integers, ...]) -> Tensor | None:
    """Return a matrix product that is not rounded, as ``MatMulIntegerToFloat`` does; ``None`` for other operators."""
    if node.op_type not in ("Gemm", "MatMul"):
        return None
    accumulator, scale = (_gemm if node.op_type == "Gemm" else _matmul)(node, inputs)
    return accumulator.float() * scale


def _convolution(node: Any, inputs: tuple[Integers, ...], qparams: QuantizationParameters) -> Integers:
    x, weight = inputs[:2]
    settings, spatial = _attributes(node), x.integers.dim() - 2
    _refuse(node, settings.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"), "auto_pad")
    sides = _sides(settings.get("pads", [0] * (2 * spatial)))
    bias = None if len(inputs) < 3 else inputs[2].integers.double()
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    accumulator = run(
        functional.pad(x.centred(), sides),
        weight.centred(),
        bias,
        settings.get("strides", 1),
        0,
        settings.get("dilations", 1),
        settings.get("group", 1),
    )
    scale = weight.qparams.scale.flatten() if weight.qparams.scale.dim() else weight.qparams.scale
    multiplier = output_multiplier(x.qparams.scale, scale, qparams)
    return requantize(accumulator, multiplier.view(-1, *[1] * spatial), qparams)


def _rounded_gemm(node: Any, inputs: tuple[Integers, ...], qparams: QuantizationParameters) -> Integers:
    accumulator, scale = _gemm(node, inputs)
    return requantize(accumulator, scale / qparams.scale, qparams)


def _rounded_matmul(node: Any, inputs: tuple[Integers, ...], qparams: QuantizationParameters) -> Integers:
    accumulator, scale = _matmul(node, inputs)
    return requantize(accumulator, scale / qparams.scale, qparams)


def _sum(node: Any, inputs: tuple[Integers, ...], qparams: QuantizationParameters) -> Integers:
    return add(inputs[0], inputs[1], qparams)


def _average_image(node: Any, inputs: tuple[Integers, ...], qparams: QuantizationParameters) -> Integers:
    return average_image(inputs[0], qparams)


def _average_windows(node: Any, inputs: tuple[Integers, ...], qparams: QuantizationParameters) -> Integers:
    settings = _attributes(node)
    _refuse(node, bool(settings.get("ceil_mode", 0)), "ceil_mode")
    _refuse(node, len(settings["kernel_shape"]) != 2, "kernel_shape")
    kernel, stride = tuple(settings["kernel_shape"]), tuple(settings.get("strides", (1, 1)))
    padding = tuple(settings.get("pads", (0, 0, 0, 0)))
    return average_windows(
        inputs[0], qparams, kernel, stride, padding, counts_padding=bool(settings.get("count_include_pad", 0))
    )


INTEGER_OPERATORS: dict[str, IntegerOperator] = {
    "Conv": _convolution,
    "Gemm": _rounded_gemm,
    "MatMul": _rounded_matmul,
    "Add": _sum,
    "GlobalAveragePool": _average_image,
    "AveragePool": _average_windows,
}
"""ONNX operator -> its integer kernel, which takes the node, its inputs and its output's quantization parameters."""


def _gemm(node: Any, inputs: tuple[Integers, ...]) -> tuple[Tensor, Tensor]:
    """``[M, K]`` and ``[N, K]`` or ``[K, N]`` -> exact ``[M, N]`` and its scale, ``[N]`` or a scalar."""
    settings, (x, weight) = _attributes(node), inputs[:2]
    _refuse(node, settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0, "alpha or beta")
    left = x.centred().T if settings.get("transA", 0) else x.centred()
    right = weight.centred().T if settings.get("transB", 0) else weight.centred()
    accumulator = left @ right
    if len(inputs) > 2:
        accumulator = accumulator + inputs[2].integers.double()
    return accumulator, x.qparams.scale * _flat(weight.qparams.scale)


def _matmul(node: Any, inputs: tuple[Integers, ...]) -> tuple[Tensor, Tensor]:
    left, right = inputs
    return torch.matmul(left.centred(), right.centred()), left.qparams.scale * _flat(right.qparams.scale)


def _flat(scale: Tensor) -> Tensor:
    return scale.flatten() if scale.dim() else scale


def _sides(pads: list[int]) -> list[int]:
    """ONNX's ``[begin of each axis, end of each axis]`` as torch's ``[begin, end]`` per axis, the last axis first."""
    half = len(pads) // 2
    return [side for axis in reversed(range(half)) for side in (pads[axis], pads[half + axis])]


def _attributes(node: Any) -> dict[str, Any]:
    helper = require("onnx").helper
    return {each.name: _plain(helper.get_attribute_value(each)) for each in node.attribute}


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _refuse(node: Any, is_unknown: bool, what: str) -> None:
    if is_unknown:
        raise ArtefactError(f"the integer form of {node.op_type} with this {what} is not known here")
