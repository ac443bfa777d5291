"""Program of ``torch.export`` for a quantized network, with torch's decomposed quantizing operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from typing_extensions import override

from lightning_optim.errors import ExportError, cause_of
from lightning_optim.export.lowering.deployed import DeployedNetwork
from lightning_optim.export.lowering.dialect import ActivationConstants, Dialect
from lightning_optim.export.onnx_file.capture import prepare_capture
from lightning_optim.export.onnx_file.lengths import open_lengths
from lightning_optim.export.onnx_file.open_shapes import OpenShapes
from lightning_optim.export.onnx_file.write import silence
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.torch_private import checkpoints_ignored, drop_guards, pytree, quantized_operators

_ATEN, _DECOMPOSED = torch.ops.aten, quantized_operators()
_QUANTIZE = _DECOMPOSED.quantize_per_tensor.default
_DEQUANTIZE = _DECOMPOSED.dequantize_per_tensor.default
_RESHAPES = (_ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints, _ATEN.unflatten.int)
Node: TypeAlias = Any  # torch.fx's; its arguments are of a union of thirty types
Numbers: TypeAlias = tuple[Any, ...]


@final
class DecomposedDialect(Dialect):
    """Decomposed dialect: torch's ``quantized_decomposed`` operators in int8, with floating-point biases, for XNNPACK.

    128 is subtracted from unsigned integers and from their zero point, so they stand for the same values.
    """

    zero_type: ClassVar[torch.dtype] = torch.int64
    has_float_bias: ClassVar[bool] = True
    keeps_bounds: ClassVar[bool] = False

    @override
    def activation(self, x: Tensor, constants: ActivationConstants) -> Tensor:
        shift = 128 if constants.zero_point.dtype is torch.uint8 else 0
        numbers = (constants.step, constants.zero - shift, constants.qmin - shift, constants.qmax - shift, torch.int8)
        out: Tensor = _DEQUANTIZE(_QUANTIZE(x, *numbers), *numbers)
        return out

    @override
    def constant(self, integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        if scale.dim() == 0:
            scale, zero_point = scale.expand(len(integers)), zero_point.expand(len(integers))
        out: Tensor = _DECOMPOSED.dequantize_per_channel.default(integers, scale, zero_point, 0, -128, 127, torch.int8)
        return out

    @override
    def average(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def capture_program(
    simulator: Simulator, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], max_batch: int
) -> ExportedProgram:
    """Capture a network with integer constants, in the patterns that a delegate looks for.

    Args:
        simulator: Ranges and quantizers of the network.
        network: The trained network; it stays as it is.
        args: Example positional inputs, on the CPU.
        kwargs: Example keyword inputs.
        max_batch: Largest batch that the program takes; 1 fixes the batch.

    Raises:
        ExportError: If the network can't be captured; the message names its class.
    """
    deployed = DeployedNetwork(network, simulator, DecomposedDialect())
    args, kwargs = _resized((args, dict(kwargs)), max_batch)
    with torch.no_grad():
        deployed(*args, **kwargs)
    try:
        rows: list[dict[int, torch.export.Dim]] | None = None
        if max_batch > 1:
            batch = torch.export.Dim("batch", min=1, max=max_batch)
            rows = [{0: batch} if named else {} for named in OpenShapes().dimensions_of(network, (args, dict(kwargs)))]
        capture = prepare_capture(deployed, args, kwargs, open_dims=rows)
        with silence(), torch.no_grad(), checkpoints_ignored(), open_lengths():
            program: ExportedProgram = torch.export.export(
                capture.model, capture.args, capture.kwargs, dynamic_shapes=capture.shapes, strict=False
            )
            drop_guards(program)
            program = program.run_decompositions({})
    except Exception as error:  # an exporter raises whatever its many layers raise
        raise ExportError(f"{type(network).__name__} cannot be captured: {cause_of(error)}") from error
    for rewrite in (
        _drop_no_ops,
        _infer_batch,
        _round_before_views,
        _align_parts,
        _give_each_reader_its_own,
        _drop_unread,
    ):
        rewrite(program)
    program.graph.lint()
    program.graph_module.recompile()
    return program


def _resized(inputs: Any, size: int) -> Any:
    """Repeat the rows of an example up to the largest batch: guards would bound the program by a smaller one."""
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    given = len(leaves[0]) if leaves else 0

    def resize(leaf: Tensor) -> Tensor:
        return leaf[torch.arange(size) % given] if leaf.dim() and len(leaf) == given else leaf

    return pytree.tree_map_only(Tensor, resize, inputs)


def _calls(program: ExportedProgram, *targets: Any) -> Iterator[Node]:
    return (node for node in list(program.graph.nodes) if node.target in targets)


def _drop_no_ops(program: ExportedProgram) -> None:
    """Remove operators that do nothing and hide a quantized input: dropout in evaluation, and copies in place."""
    for node in _calls(program, _ATEN.dropout.default, _ATEN.clone.default):
        if node.kwargs.get("memory_format") is None:
            _replace(node, node.args[0])
    for node in _calls(program, _ATEN.copy.default):
        target, source = node.args[:2]
        if (
            target.meta["val"].shape == source.meta["val"].shape
            and target.meta["val"].dtype == source.meta["val"].dtype
        ):
            _replace(node, source)


def _replace(node: Node, other: Any) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _infer_batch(program: ExportedProgram) -> None:
    """Let views infer a dynamic dimension: delegates take no computed one."""
    for node in _calls(program, *_RESHAPES):
        shape, source = node.meta["val"].shape, node.args[0].meta["val"]
        is_open = [not isinstance(size, int) for size in shape]
        if sum(is_open) == 1 and source.is_contiguous():
            inferred = [-1 if free else size for size, free in zip(shape, is_open, strict=True)]
            node.target, node.args, node.kwargs = _ATEN.view.default, (node.args[0], inferred), {}


def _round_before_views(program: ExportedProgram) -> None:
    """Round an operator's output before the view that follows: a delegate's kernel ends with the rounding."""
    for node in reversed(list(_calls(program, _ATEN.view.default))):
        readers = list(node.users)
        if len(readers) == 1 and readers[0].target is _QUANTIZE and node.args[0].target is not _DEQUANTIZE:
            node.args = (_requantized(program, node.args[0], readers[0].args[1:]), *node.args[1:])


def _align_parts(program: ExportedProgram) -> None:
    """Round the parts of a concatenation as the whole is rounded: delegates concatenate integers as they are."""
    for node in _calls(program, _ATEN.cat.default):
        readers = list(node.users)
        if len(readers) != 1 or readers[0].target is not _QUANTIZE:
            continue
        numbers = readers[0].args[1:]
        parts = [_requantized(program, part, numbers) for part in node.args[0]]
        node.args = (parts, *node.args[1:])


def _requantized(program: ExportedProgram, part: Node, numbers: Numbers) -> Node:
    if part.target is _DEQUANTIZE and part.args[1:] == numbers:
        return part
    with program.graph.inserting_after(part):
        integers = program.graph.call_function(_QUANTIZE, (part, *numbers))
    with program.graph.inserting_after(integers):
        out = program.graph.call_function(_DEQUANTIZE, (integers, *numbers))
    integers.meta["val"], out.meta["val"] = part.meta["val"].to(torch.int8), part.meta["val"]
    return out


def _give_each_reader_its_own(program: ExportedProgram) -> None:
    """Dequantize for every reader by a node of its own: with one node for all, the readers become several delegates."""
    for node in _calls(program, _DEQUANTIZE):
        for reader in list(node.users)[1:]:
            with program.graph.inserting_after(node):
                own = program.graph.node_copy(node)
            reader.replace_input_with(node, own)


def _drop_unread(program: ExportedProgram) -> None:
    """Remove parameters and buffers that no operator reads: the trained weights, which integers have replaced."""
    program.graph.eliminate_dead_code()
    signature, unread = program.graph_signature, set()
    for node in [node for node in program.graph.nodes if node.op == "placeholder" and not node.users]:
        spec = next(each for each in signature.input_specs if each.arg.name == node.name)
        if spec.kind is not InputKind.USER_INPUT and spec.target is not None:
            unread.add(node.name)
            program.state_dict.pop(spec.target, None)
            program.graph.erase_node(node)
    signature.input_specs = [spec for spec in signature.input_specs if spec.arg.name not in unread]
