"""TensorRT: int8 ONNX files that it builds engines from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import ExportError
from lightning_optim.export.lowering.dialect import SymmetricDialect
from lightning_optim.export.lowering.qdq import write_qdq
from lightning_optim.export.onnx_file.graphs import nodes_of
from lightning_optim.export.onnx_file.kernels import MOVES, Kernels
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.export.onnx_file.session import Session, open_session
from lightning_optim.export.runtime.base import Runner, Runtime, check_activations, check_weights
from lightning_optim.optional import require
from lightning_optim.quantization.simulation.operators import Role
from lightning_optim.quantization.simulation.simulator import Simulator

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_PASSES = MOVES | {"Relu", "Clip", "MaxPool"}
_READS_TWO = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"})
_READS_ONE = frozenset({"AveragePool", "GlobalAveragePool"})


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT(Runtime):
    """TensorRT: an ONNX file with symmetric int8 activations and weights, and floating-point biases.

    TensorRT needs a GPU to build an engine, so the file is checked by its structure alone: every pair of QuantizeLinear
    and DequantizeLinear is symmetric, and every promised operator reads integers. Parity and latency are those of ONNX
    Runtime, which computes the file as it is written, in floating point.

    Values below the range saturate at -128 in TensorRT, so the simulation of activations must use this integer too:
    ``Symmetric(granularity="tensor", narrow_range=False)``.
    """

    promised: ClassVar[Mapping[tuple[Role, ...], frozenset[str]]] = {
        (Role.CONVOLUTION,): frozenset({"Conv", "ConvTranspose"}),
        (Role.LINEAR, Role.MATMUL): frozenset({"Gemm", "MatMul"}),
        (Role.ADD,): frozenset({"Add"}),
        (Role.POOL,): frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"}),
    }

    @override
    def check(self, simulator: Simulator) -> None:
        check_activations(
            simulator,
            "TensorRT",
            "int8 activations around 0 that saturate at -128, as Symmetric(granularity='tensor', narrow_range=False) "
            "makes them",
            lambda scheme: (
                scheme.signed == "int"
                and scheme.symmetric
                and (scheme.qmin, scheme.qmax, scheme.granularity) == (-128, 127, "tensor")
            ),
        )
        check_weights(simulator, "TensorRT")

    @override
    def write(
        self, simulator: Simulator, network: nn.Module, example: Example, path: Path, shapes: OpenShapes
    ) -> Kernels:
        write_qdq(simulator, network, example, path, SymmetricDialect(), shapes, narrowest=8)
        return inspect_symmetric(path)

    @override
    def load(self, path: Path) -> Runner:
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as it is written
        return Session(open_session(path, options)).run


def inspect_symmetric(path: str | Path) -> Kernels:
    """Check that all integers of an ONNX file are symmetric int8, and sort its operators by whether they read integers.

    Args:
        path: The file.

    Raises:
        ExportError: If a zero point is not 0, a scale not positive, or an integer unsigned.
    """
    model = require("onnx").load(path)
    to_array = require("onnx").numpy_helper.to_array
    constants = {each.name: to_array(each) for each in model.graph.initializer}
    for fault in _faults(model, constants):
        raise ExportError(f"TensorRT would refuse the file: {fault}")
    integers: set[str] = set()
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    for node in nodes_of(model.graph):
        kind, read = node.op_type, [name in integers for name in node.input]
        if kind == "DequantizeLinear" or (kind in _PASSES and read and read[0]):
            integers.update(node.output)
        if (kind in _READS_TWO and all(read[:2])) or (kind in _READS_ONE and read[0]):
            integer[kind] += 1
        elif kind not in MOVES and kind not in _PAIR and kind not in _PASSES:
            floating[kind] += 1
    counts = Counter(node.op_type for node in nodes_of(model.graph))
    return Kernels(counts=dict(counts), integer=dict(integer), floating=dict(floating))


def _faults(model: Any, constants: Mapping[str, Any]) -> Iterator[str]:
    for node in model.graph.node:
        if node.op_type not in _PAIR:
            continue
        scale = constants.get(node.input[1])
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None or not (scale > 0).all():
            yield f"a scale of {node.op_type} is not positive"
        if zero is not None and (zero.any() or zero.dtype != "int8"):
            yield f"a zero point of {node.op_type} is {zero.dtype} {zero.flat[0]}, not int8 0"
        if node.op_type == "QuantizeLinear" and zero is None:
            yield "a QuantizeLinear without a zero point makes uint8"
        stored = constants.get(node.input[0])
        if stored is not None and stored.dtype != "int8":
            yield f"a constant of {stored.dtype} is read as an integer"
