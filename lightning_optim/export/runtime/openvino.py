"""OpenVINO: integer kernels on the CPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import ExportError
from lightning_optim.export.lowering.dialect import AffineDialect
from lightning_optim.export.lowering.qdq import write_qdq
from lightning_optim.export.onnx_file.kernel_macs import measure_macs
from lightning_optim.export.onnx_file.kernels import Kernels
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.export.runtime.base import Runner, Runtime
from lightning_optim.export.runtime.onnxruntime import check_affine
from lightning_optim.optional import require
from lightning_optim.quantization.simulation.operators import Role
from lightning_optim.quantization.simulation.simulator import Simulator

_INTEGER = frozenset({"u8", "i8", "u4", "i4"})
# Operators that move or convert values and compute nothing.
_MOVES = frozenset(
    {"Input", "Output", "Const", "Reorder", "Reshape", "Transpose", "Convert", "Split", "Concatenation"}
    | {"StridedSlice", "Gather", "Broadcast", "ShapeOf", "FakeQuantize"}
)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVINO(Runtime):
    """OpenVINO: the ONNX file that ``ONNXRuntime`` writes, checked and timed in OpenVINO.

    OpenVINO decides by its own rules what runs in integers: convolutions and linear layers do, most sums outside of
    them do not. So the export promises convolutions and linear layers alone. OpenVINO's integers may differ from the
    simulation's by one.

    Args:
        packed: Whether weights whose integers fit into 4 bits are stored in 4 bits; OpenVINO has no 2-bit integers.
    """

    promised: ClassVar[Mapping[tuple[Role, ...], frozenset[str]]] = {
        (Role.CONVOLUTION,): frozenset({"Convolution", "Deconvolution"}),
        (Role.LINEAR,): frozenset({"FullyConnected"}),
    }

    packed: bool = True

    @override
    def check(self, simulator: Simulator) -> None:
        check_affine(simulator, "OpenVINO")

    @override
    def write(
        self, simulator: Simulator, network: nn.Module, example: Example, path: Path, shapes: OpenShapes
    ) -> Kernels:
        require("openvino", "openvino")
        write_qdq(simulator, network, example, path, AffineDialect(), shapes, narrowest=4 if self.packed else 8)
        kinds = [_kind_of(node) for node in _compiled(path).get_runtime_model().get_ordered_ops()]
        computing = [(kind, precision in _INTEGER) for kind, precision in kinds if kind not in _MOVES]
        return Kernels(
            counts=dict(Counter(kind for kind, _ in kinds)),
            integer=dict(Counter(kind for kind, is_integer in computing if is_integer)),
            floating=dict(Counter(kind for kind, is_integer in computing if not is_integer)),
        )

    @override
    def load(self, path: Path) -> Runner:
        request = _compiled(path).create_infer_request()

        def run(*arrays: Any) -> list[Any]:
            outputs = request.infer([np.asarray(array) for array in arrays])
            return [np.array(outputs[place]) for place in range(len(outputs))]

        return run

    @override
    def integer_share(self, path: Path, inputs: Sequence[Any]) -> float | None:
        # What OpenVINO has fused has no shape any more: it tells of its integers alone, and the file of all products.
        total = measure_macs(path, inputs).total
        nodes = _compiled(path, [list(each.shape) for each in inputs]).get_runtime_model().get_ordered_ops()
        kinds = [(node, *_kind_of(node)) for node in nodes]
        integer = sum(_macs(node, kind) for node, kind, precision in kinds if precision in _INTEGER)
        return integer / total if total else 1.0


def _kind_of(node: Any) -> tuple[str, str]:
    info = node.get_rt_info()
    return str(_value(info, "layerType")), str(_value(info, "runtimePrecision"))


def _macs(node: Any, kind: str) -> int:
    """Multiply-accumulates of a node that computes in integers."""
    inputs = [list(each.get_shape()) for each in node.inputs()]
    output = math.prod(node.outputs()[0].get_shape())
    if kind in ("FullyConnected", "MatMul"):
        return int(output * inputs[0][-1])
    if kind not in ("Convolution", "Deconvolution"):
        return 0
    weight = inputs[1][2:] if len(inputs[1]) > len(inputs[0]) else inputs[1][1:]  # one axis more, if there are groups
    return int((output if kind == "Convolution" else math.prod(inputs[0])) * math.prod(weight))


def _compiled(path: Path, shapes: Sequence[Sequence[int]] | None = None) -> Any:
    core = require("openvino", "openvino").Core()
    try:
        # As bytes: OpenVINO would tell the format from a file's suffix, which an unchecked file does not have.
        model = core.read_model(path.read_bytes(), b"")
        if shapes is not None:
            model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        return core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    except Exception as error:  # the runtime raises classes of its own, and RuntimeError
        raise ExportError(f"OpenVINO cannot run the file: {_reason(error)}") from error


def _value(info: Any, name: str) -> Any:
    value = info[name]
    return getattr(value, "value", value)


def _reason(error: Exception) -> str:
    """Last line of an error's message that is not empty: the first ones name OpenVINO's own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
