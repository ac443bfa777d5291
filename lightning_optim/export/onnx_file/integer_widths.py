"""Narrow integers that the ONNX Runtime which is installed can read."""

from __future__ import annotations

import functools
from typing import Any

from lightning_optim.optional import require

_OPSET, _IR = 25, 13  # the first with 2-bit integers


@functools.cache
def narrowest_integers() -> int:
    """Fewest bits that a weight may be stored in: 2, or 4 where ONNX Runtime (up to 1.23) has no 2-bit integers.

    Found by loading a model of one ``Cast`` and one ``MatMulNBits``, both with a weight of 2 bits.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        runtime.InferenceSession(_model_of_2_bits().SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # the runtime raises a class of its own per kind of fault
        return 4
    return 2


def _model_of_2_bits() -> Any:
    onnx = require("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["two"], ["eight"], to=kinds.INT8),
        helper.make_node(
            "MatMulNBits", ["x", "packed", "scale"], ["y"], domain="com.microsoft", K=16, N=1, bits=2, block_size=16
        ),
    ]
    constants = [
        helper.make_tensor("two", kinds.INT2, [4], [1, 0, -1, -2]),
        helper.make_tensor("packed", kinds.UINT8, [1, 1, 4], [0, 0, 0, 0]),
        helper.make_tensor("scale", kinds.FLOAT, [1], [1.0]),
    ]
    outputs = [
        helper.make_tensor_value_info("eight", kinds.INT8, [4]),
        helper.make_tensor_value_info("y", kinds.FLOAT, [1, 1]),
    ]
    inputs = [helper.make_tensor_value_info("x", kinds.FLOAT, [1, 16])]
    graph = helper.make_graph(nodes, "two_bits", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
