"""Custom operators that stand in a captured graph for ONNX's QuantizeLinear and DequantizeLinear.

torch's own fake-quantize operators can't be captured, and their translations know neither narrow weight ranges nor the
explicit zero points without which ONNX Runtime leaves a linear layer in floating point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_optim.export.lowering.blocks import unpack_blocks
from lightning_optim.optional import require
from lightning_optim.quantization.functional import per_channel

_IN_FLOAT32, _IN_INT8 = 1, 4  # accuracy levels of MatMulNBits


@torch.library.custom_op("lightning_optim::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Round ``x`` to the values of the integers from ``qmin`` to ``qmax``; ``zero_point`` has their type."""
    zero = zero_point.float()
    return ((x / scale).round_().add_(zero).clamp_(qmin, qmax) - zero) * scale


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("lightning_optim::dequantize_constant", mutates_args=())
def dequantize_constant(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the values that stored integers stand for, with a scale per channel or one for all."""
    return (integers.float() - per_channel(zero_point, integers).float()) * per_channel(scale, integers)


@dequantize_constant.register_fake
def _(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(integers, dtype=torch.float32)


@torch.library.custom_op("lightning_optim::dequantize_symmetric", mutates_args=())
def dequantize_symmetric(integers: Tensor, scale: Tensor) -> Tensor:
    """Return the values that stored integers around 0 stand for, with a scale per channel or one for all."""
    return integers.float() * per_channel(scale, integers)


@dequantize_symmetric.register_fake
def _(integers: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(integers, dtype=torch.float32)


@torch.library.custom_op("lightning_optim::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """Average an image over its height and width, ``[N, C, H, W]`` to ``[N, C, 1, 1]``."""
    return x.mean((2, 3), keepdim=True)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], 1, 1)


@torch.library.custom_op("lightning_optim::linear_of_blocks", mutates_args=())
def linear_of_blocks(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, num_inputs: int, bits: int
) -> Tensor:
    """Run a linear layer on floats, with a weight that ``pack_blocks`` packed."""
    return functional.linear(x, unpack_blocks(packed, scale, num_inputs, bits), bias)


@linear_of_blocks.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, num_inputs: int, bits: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(packed))


def translations(*, rounds_inputs: bool = False) -> dict[Any, Callable[..., Any]]:
    """Translations to ONNX: custom operator -> function that writes it.

    Args:
        rounds_inputs: Whether linear layers of packed weights may round their inputs to int8.
    """
    op = require("onnxscript").opset21
    matmul_of_blocks = _matmul_of_blocks()

    def translate_activation(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int) -> Any:
        integers = op.QuantizeLinear(x, scale, zero_point)
        if (qmin, qmax) not in ((0, 255), (-128, 127)):
            # Clips the integers and not their values, so that the output of the layer before stays integer.
            integers = op.Clip(integers, op.CastLike(qmin, zero_point), op.CastLike(qmax, zero_point))
        return op.DequantizeLinear(integers, scale, zero_point)

    def translate_constant(integers: Any, scale: Any, zero_point: Any) -> Any:
        return op.DequantizeLinear(integers, scale, zero_point, axis=0)

    def translate_symmetric(integers: Any, scale: Any) -> Any:
        return op.DequantizeLinear(integers, scale, axis=0)

    def translate_pool(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    def translate_blocks(x: Any, packed: Any, scale: Any, bias: Any, num_inputs: int, bits: int) -> Any:
        num_outputs, _, num_bytes = packed.shape
        inputs = (x, packed, scale) if bias is None else (x, packed, scale, None, None, bias)
        return matmul_of_blocks(
            *inputs,
            K=num_inputs,
            N=num_outputs,
            bits=bits,
            block_size=num_bytes * 8 // bits,
            accuracy_level=_IN_INT8 if rounds_inputs else _IN_FLOAT32,
        )

    operators = torch.ops.lightning_optim
    return {
        operators.quantize_dequantize.default: translate_activation,
        operators.dequantize_constant.default: translate_constant,
        operators.dequantize_symmetric.default: translate_symmetric,
        operators.global_average_pool.default: translate_pool,
        operators.linear_of_blocks.default: translate_blocks,
    }


def _matmul_of_blocks() -> Any:
    """Describe ``MatMulNBits`` as far as it is used: ONNX's own list lacks the operators that ONNX Runtime adds."""
    schema, values = require("onnx").defs.OpSchema, require("onnxscript").values
    floats, is_optional = "tensor(float)", schema.FormalParameterOption.Optional
    inputs = [schema.FormalParameter(name, kind) for name, kind in (("A", floats), ("B", "tensor(uint8)"))]
    inputs.append(schema.FormalParameter("scales", floats))
    inputs += [
        schema.FormalParameter(name, kind, param_option=is_optional)
        for name, kind in (("zero_points", "tensor(uint8)"), ("g_idx", "tensor(int32)"), ("bias", floats))
    ]
    described = schema(
        "MatMulNBits",
        "com.microsoft",
        1,
        inputs=inputs,
        outputs=[schema.FormalParameter("Y", floats)],
        attributes=[
            schema.Attribute(name, schema.AttrType.INT) for name in ("K", "N", "bits", "block_size", "accuracy_level")
        ],
    )
    return values.Op(values.Opset("com.microsoft", 1), "MatMulNBits", described)
