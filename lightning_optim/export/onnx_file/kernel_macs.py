"""Multiply-accumulates (MACs) of the kernels that ONNX Runtime runs for a model, from the shapes that it meets."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_optim.export.onnx_file.kernels import INTEGER_KERNELS
from lightning_optim.export.onnx_file.session import Session, open_session
from lightning_optim.optional import require

_Shape = list[int]
_Count = Callable[[list[_Shape], _Shape], int]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMACs:
    """Multiply-accumulates of one run of a model.

    Args:
        integer: Those of kernels that compute in integers.
        floating: Those of kernels that compute in floating point.
    """

    integer: int
    floating: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.integer + self.floating

    @property
    def integer_share(self) -> float:
        """Share of those in integers, in ``[0, 1]``; 1 if there are none at all."""
        return self.integer / self.total if self.total else 1.0


def measure_macs(path: str | Path, arrays: Sequence[Any]) -> KernelMACs:
    """Run a model once, and count the multiply-accumulates of its kernels.

    Convolutions, matrix products and recurrent layers count, as they do for ``count_macs``.

    Args:
        path: The ONNX file.
        arrays: One array or CPU tensor per input.

    Raises:
        ArtefactError: If the file is missing or no model.
    """
    with tempfile.TemporaryDirectory() as folder:
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        # What integers compute is decided by then; the layouts of the last level pad channels.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "run"))
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Weights that are packed when a model is loaded would have no shape in the profile.
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = open_session(path, options)
        Session(session).run(*arrays)
        events = json.loads(Path(session.end_profiling()).read_text())
    equations = _equations(path)
    found = {True: 0, False: 0}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            found[kind.startswith(INTEGER_KERNELS)] += _kernel_macs(kind, event["args"], equations)
    return KernelMACs(integer=found[True], floating=found[False])


def _equations(path: str | Path) -> Iterator[str]:
    """Equations of a model's ``Einsum`` nodes: a profile does not hold them, but has the nodes in the same order."""
    nodes = (node for node in require("onnx").load(path).graph.node if node.op_type == "Einsum")
    return (str(node.attribute[0].s.decode()) for node in nodes)


def _kernel_macs(kind: str, event: dict[str, Any], equations: Iterator[str]) -> int:
    inputs, outputs = (
        [shape for tensor in event[name] for shape in tensor.values()]
        for name in ("input_type_shape", "output_type_shape")
    )
    if kind == "Einsum":
        return _einsum(next(equations), inputs)
    count = _COUNTS.get(kind)
    operands = [shape for shape in inputs if shape and (len(shape) > 1 or kind in _VECTORS)]
    return count(operands, outputs[0]) if count is not None and outputs and len(operands) > 1 else 0


def _einsum(equation: str, operands: list[_Shape]) -> int:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        sizes.update(zip(term, shape, strict=True))
    return math.prod(sizes.values()) * (len(operands) - 1)


def _convolution(operands: list[_Shape], output: _Shape) -> int:
    return math.prod(output) * math.prod(operands[1][1:])


def _transposed_convolution(operands: list[_Shape], output: _Shape) -> int:
    return math.prod(operands[0]) * math.prod(operands[1][1:])


def _product(operands: list[_Shape], output: _Shape) -> int:
    left, right = operands[:2]
    if len(left) == 1 or len(right) == 1:
        return math.prod(output) * (left if len(left) == 1 else right)[0]
    # The last two axes are the rows and what is summed over, in one order or the other.
    return math.prod(output) * left[-1] * left[-2] // max(1, output[-2])


def _product_of_blocks(operands: list[_Shape], output: _Shape) -> int:
    return math.prod(output) * operands[0][-1]


def _recurrent(operands: list[_Shape], output: _Shape) -> int:
    x, input_weight, hidden_weight = operands[:3]
    return math.prod(x[:2]) * (math.prod(input_weight) + math.prod(hidden_weight))


_KINDS: dict[_Count, str] = {
    _convolution: "Conv FusedConv NhwcFusedConv QLinearConv ConvInteger",
    _transposed_convolution: "ConvTranspose",
    _product: (
        "Gemm FusedGemm QGemm MatMul FusedMatMul QLinearMatMul MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul"
    ),
    _product_of_blocks: "MatMulNBits",
    _recurrent: "LSTM GRU RNN",
}
_COUNTS = {name: count for count, names in _KINDS.items() for name in names.split()}
_VECTORS = frozenset({"MatMul", "FusedMatMul"})  # their operands may be vectors
