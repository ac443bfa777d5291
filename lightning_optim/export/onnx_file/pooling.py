"""Average pooling of a captured model, spelled out as ONNX and its runtimes understand it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from lightning_optim.errors import ExportError

_POOLS = {
    torch.ops.aten.avg_pool1d.default: 1,
    torch.ops.aten.avg_pool2d.default: 2,
    torch.ops.aten.avg_pool3d.default: 3,
}


def spell_out_pools(program: ExportedProgram) -> None:
    """Rewrite poolings with a divisor of their own, or with windows that reach beyond the padded image.

    The exporter drops ``divisor_override``, and a runtime counts what lies beyond the padding as torch does not.

    Args:
        program: The captured model; changed in place.
    """
    for node in [node for node in program.graph.nodes if node.target in _POOLS]:
        _spell_out(program, node, _POOLS[node.target])
    program.graph_module.recompile()


def _spell_out(program: ExportedProgram, node: Node, dims: int) -> None:
    given: list[Any] = [*node.args, *[None] * (7 - len(node.args))]
    x, size, stride, padding, ceil_mode, counts_padding, divisor = given
    size, padding = _spread(size, dims), _spread(padding or 0, dims)
    counts_padding = True if counts_padding is None else counts_padding
    reaches_beyond = bool(ceil_mode) and counts_padding
    if not reaches_beyond and divisor is None:
        return
    if divisor is not None and ceil_mode:
        raise ExportError("average pooling with both divisor_override and ceil_mode has no form in ONNX: pad its input")
    if any(padding):
        around = [width for each in reversed(padding) for width in (each, each)]
        with program.graph.inserting_before(node):
            x = program.graph.call_function(torch.ops.aten.constant_pad_nd.default, (x, around))
    node.args = (x, size, stride or size, [0] * dims, bool(ceil_mode), False)
    if divisor is not None:
        _divide(program, node, math.prod(size) / divisor)


def _divide(program: ExportedProgram, node: Node, factor: float) -> None:
    with program.graph.inserting_after(node):
        product = program.graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
    node.replace_all_uses_with(product)
    product.args = (node, factor)


def _spread(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else [*value]
    return values * dims if len(values) == 1 else values
