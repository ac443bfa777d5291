"""ONNX file of a quantized network, with QuantizeLinear and DequantizeLinear (QDQ)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_optim.atomic import write_atomic
from lightning_optim.export.lowering.deployed import DeployedNetwork
from lightning_optim.export.lowering.dialect import Dialect
from lightning_optim.export.lowering.double_rounding import merge_double_rounding
from lightning_optim.export.lowering.operators import translations
from lightning_optim.export.lowering.pack import pack_weights
from lightning_optim.export.onnx_file.graphs import nodes_of
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.export.onnx_file.write import write_onnx
from lightning_optim.optional import require
from lightning_optim.quantization.simulation.simulator import Simulator


def write_qdq(
    simulator: Simulator,
    network: nn.Module,
    example: Example,
    path: Path,
    dialect: Dialect,
    shapes: OpenShapes,
    *,
    narrowest: int,
    rounds_inputs: bool = False,
) -> None:
    """Write a network with integer constants to an ONNX file.

    Batch norms are folded, a value that is rounded twice in a row is rounded once, average pooling over the whole image
    becomes ``GlobalAveragePool``, and positional inputs are called what the network's own forward calls them.

    Args:
        simulator: Ranges and quantizers of the network.
        network: The trained network; it stays as it is.
        example: Positional and keyword inputs, on the CPU.
        path: The file.
        dialect: The quantizing operators that the runtime reads.
        shapes: Which dimensions are open.
        narrowest: Fewest bits that a weight may be stored in: 2, 4 or 8.
        rounds_inputs: Whether linear layers of packed weights may round their inputs to int8.

    Raises:
        ExportError: If the network can't be exported.
    """
    deployed = DeployedNetwork(network, simulator, dialect, narrowest)
    with torch.no_grad():
        deployed(*example[0], **example[1])
    write_onnx(
        deployed,
        example,
        path,
        shapes.dimensions_of(network, example),
        translations=translations(rounds_inputs=rounds_inputs),
        name=type(network).__name__,
    )
    model = require("onnx").load(path)
    _name_inputs(model, network, example[0])
    _store_constants(model)
    merge_double_rounding(model)
    pack_weights(model, narrowest)
    write_atomic(path, model.SerializeToString(deterministic=True))


def _name_inputs(model: Any, network: nn.Module, args: tuple[Any, ...]) -> None:
    """Call positional inputs what the network's own forward calls them; a nested one keeps its name."""
    parameters = list(inspect.signature(type(network).forward).parameters.values())[1:]
    named = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]
    names = {f"args_{place}": name for place, (name, _) in enumerate(zip(named, args, strict=False))}
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in nodes_of(model.graph):
        node.input[:] = [names.get(name, name) for name in node.input]


def _store_constants(model: Any) -> None:
    """Quantize constants that do not depend on the inputs, such as position embeddings: some runtimes can't."""
    numpy_helper = require("onnx").numpy_helper
    constants = {each.name: each for each in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in constants]:
        values, scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input)
        limits = np.iinfo(zero.dtype)
        integers = np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(zero.dtype)
        model.graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
        model.graph.node.remove(node)
    read = {name for node in nodes_of(model.graph) for name in node.input}
    for each in [each for each in model.graph.initializer if each.name not in read]:
        model.graph.initializer.remove(each)
