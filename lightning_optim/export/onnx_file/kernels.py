"""Kernels that ONNX Runtime runs for a model, and how many of them compute in integers."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_optim.export.onnx_file.graphs import nodes_of
from lightning_optim.export.onnx_file.session import open_session
from lightning_optim.optional import require

INTEGER_KERNELS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QAttention")
"""How the names of ONNX Runtime's integer kernels begin."""

_CONVERT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
_PICK = frozenset({"MaxPool", "NhwcMaxPool"})  # computes in integers if its input is one
# Operators that move values and compute nothing.
MOVES = frozenset(
    {"Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "ReorderInput"}
    | {"ReorderOutput", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels of a model: its nodes after the runtime's own optimization.

    Args:
        counts: Operator -> number of nodes, all of them.
        integer: Operator -> number of nodes that compute in integers.
        floating: Operator -> number of nodes that compute in floating point.
    """

    counts: dict[str, int]
    integer: dict[str, int]
    floating: dict[str, int]

    @property
    def integer_fraction(self) -> float:
        """Share of the computing nodes that compute in integers, in ``[0, 1]``; 0 if nothing computes."""
        integer, floating = sum(self.integer.values()), sum(self.floating.values())
        return integer / (integer + floating) if integer + floating else 0.0


def inspect_kernels(path: str | Path) -> Kernels:
    """Sort the nodes of a model that are left after ONNX Runtime's own optimization.

    A max-pool counts as integer where its input is one; conversions and moves count as neither.

    Raises:
        ArtefactError: If the file is missing or no model.
    """
    nodes = _optimized_nodes(path)
    integers: set[str] = set()
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    for node in nodes:
        kind = node.op_type
        fed = bool(node.input) and node.input[0] in integers
        if kind == "QuantizeLinear" or kind.startswith(INTEGER_KERNELS) or (kind in MOVES | _PICK and fed):
            integers.update(node.output)
        if (kind.startswith(INTEGER_KERNELS) and kind not in _CONVERT) or (kind in _PICK and fed):
            integer[kind] += 1
        elif kind not in _CONVERT | MOVES:
            floating[kind] += 1
    counts = Counter(node.op_type for node in nodes)
    return Kernels(counts=dict(counts), integer=dict(integer), floating=dict(floating))


def count_kernels(path: str | Path) -> dict[str, int]:
    """Counts of kernels: operator -> number of nodes that ONNX Runtime runs after its own optimization."""
    return inspect_kernels(path).counts


def _optimized_nodes(path: str | Path) -> list[Any]:
    onnx, runtime = require("onnx"), require("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        open_session(path, options)
        return nodes_of(onnx.load(options.optimized_model_filepath).graph)
