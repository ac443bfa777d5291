"""Packing of weights: integers of few bits are stored in 4 or 2 bits."""

from __future__ import annotations

from typing import Any

from lightning_optim.export.onnx_file.graphs import nodes_of
from lightning_optim.optional import require

_OVERHEAD = 64  # bytes that a node takes; where packing saves fewer, it saves nothing
_INT2_OPSET, _INT2_IR = 25, 13


def pack_weights(model: Any, narrowest: int = 2) -> None:
    """Store int8 weights in 4 or 2 bits where their integers fit, in place.

    Integer kernels read 8 bits: a ``Cast`` in front of the ``DequantizeLinear`` widens the weight, and a runtime folds
    the ``Cast`` when it loads the file. (Without one, ONNX Runtime computes in floating point, or refuses the weight.)
    Two bits hold binary, ternary and 2-bit weights; they need operator set 25.

    Args:
        model: An ``onnx.ModelProto``.
        narrowest: Fewest bits that the runtime knows: 2, 4 or 8.
    """
    onnx = require("onnx")
    readers: dict[str, list[Any]] = {}
    for node in nodes_of(model.graph):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    casts, has_2_bits = [], False
    for weight in model.graph.initializer:
        found = readers.get(weight.name, [])
        is_read_as_integer = all(node.op_type == "DequantizeLinear" and node.input[0] == weight.name for node in found)
        if weight.data_type != onnx.TensorProto.INT8 or not found or not is_read_as_integer:
            continue
        integers = onnx.numpy_helper.to_array(weight)
        bits = max(narrowest, _bits_for(int(integers.min(initial=0)), int(integers.max(initial=0))))
        if bits == 8 or integers.size * (8 - bits) / 8 < _OVERHEAD:
            continue
        casts.append(_pack(weight, integers, bits, found))
        has_2_bits = has_2_bits or bits == 2
    for position, cast in enumerate(casts):
        model.graph.node.insert(position, cast)
    if has_2_bits:
        _raise_opset(model)


def _bits_for(low: int, high: int) -> int:
    """Fewest bits of a type that holds two's complement integers from ``low`` to ``high``."""
    return next(bits for bits in (2, 4, 8) if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1))


def _pack(weight: Any, integers: Any, bits: int, readers: list[Any]) -> Any:
    """Replace an initializer's content, let its readers read it through a ``Cast``, and return the ``Cast``."""
    onnx = require("onnx")
    kind = onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT2
    packed = onnx.helper.make_tensor(weight.name, kind, integers.shape, integers.flatten().tolist())
    widened = f"{weight.name}_int8"
    for node in readers:
        node.input[0] = widened
    cast = onnx.helper.make_node("Cast", [weight.name], [widened], to=onnx.TensorProto.INT8)
    raw = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(packed), weight.name)
    weight.CopyFrom(raw)
    return cast


def _raise_opset(model: Any) -> None:
    """Raise the operator set to one with 2-bit integers; up to it, operators gained types and kept their meaning."""
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, _INT2_OPSET)
    model.ir_version = max(model.ir_version, _INT2_IR)
