"""Values that are rounded twice, with nothing computed in between, are rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_optim.export.onnx_file.graphs import nodes_of
from lightning_optim.optional import require


def merge_double_rounding(model: Any) -> None:
    """Make one pair of two pairs of ``QuantizeLinear`` and ``DequantizeLinear`` that stand in a row, in place.

    Such a value comes from an operator that the exporter finds to change nothing, such as a product with 1. The pair
    that is left covers what both ranges cover. ONNX Runtime does the same when it loads a file, but up to its version
    1.23 it writes the new scale in a shape that its own ``QLinearAdd`` refuses.

    Args:
        model: An ``onnx.ModelProto``.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    for second in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        between, last = made_by.get(second.input[0]), _only_reader(graph, second.output[0])
        if between is None or between.op_type != "DequantizeLinear" or last is None:
            continue
        first = made_by.get(between.input[0])
        is_chain = (
            first is not None
            and first.op_type == "QuantizeLinear"
            and _only_reader(graph, first.output[0]) is not None
            and _only_reader(graph, between.output[0]) is not None
            and not outputs & {first.output[0], between.output[0], second.output[0]}
        )
        merged = _covered_by_both(graph, first, second) if is_chain else None
        if first is None or merged is None:
            continue
        names = [f"{second.output[0]}_{kind}" for kind in ("scale", "zero_point")]
        for name, value in zip(names, merged, strict=True):
            graph.initializer.append(require("onnx").numpy_helper.from_array(value, name))
        first.input[1:], last.input[:] = names, [first.output[0], *names]
        graph.node.remove(between)
        graph.node.remove(second)


def _only_reader(graph: Any, name: str) -> Any:
    readers = [node for node in nodes_of(graph) if name in node.input]
    return readers[0] if len(readers) == 1 else None


def _covered_by_both(graph: Any, first: Any, second: Any) -> tuple[Any, Any] | None:
    """Scale and zero point of the range that two roundings share; ``None`` where one is not of a whole tensor."""
    to_array = require("onnx").numpy_helper.to_array
    constants = {each.name: each for each in graph.initializer}
    found = [constants.get(name) for node in (first, second) for name in node.input[1:]]
    if len(found) != 4 or None in found:
        return None
    one, zero_of_one, other, zero_of_other = (to_array(each) for each in found)
    if one.size != 1 or other.size != 1 or zero_of_one.dtype != zero_of_other.dtype:
        return None
    limits = np.iinfo(zero_of_one.dtype)
    ends = [
        [(np.float32(limit) - zero.astype(np.float32)) * scale.astype(np.float32) for limit in (limits.min, limits.max)]
        for scale, zero in ((one, zero_of_one), (other, zero_of_other))
    ]
    low, high = max(ends[0][0], ends[1][0]), min(ends[0][1], ends[1][1])
    if low >= high:
        return None
    scale = np.float32((high - low) / np.float32(limits.max - limits.min))
    zero = np.asarray(np.rint(limits.min - low / scale), dtype=zero_of_one.dtype)
    return np.asarray(scale, dtype=np.float32), zero
