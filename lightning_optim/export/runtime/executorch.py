"""ExecuTorch with its XNNPACK delegate: integer kernels on phones and other CPUs."""

from __future__ import annotations

import importlib.resources
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.atomic import write_atomic
from lightning_optim.checked import checked
from lightning_optim.errors import ExportError, cause_of
from lightning_optim.export.lowering.program import capture_program
from lightning_optim.export.onnx_file.kernels import Kernels
from lightning_optim.export.onnx_file.open_shapes import Example, OpenShapes
from lightning_optim.export.onnx_file.write import silence
from lightning_optim.export.runtime.base import Runner, Runtime, check_activations, check_weights
from lightning_optim.optional import require
from lightning_optim.quantization.scheme import Scheme
from lightning_optim.quantization.simulation.operators import Role
from lightning_optim.quantization.simulation.simulator import Simulator

_EXTRA = "executorch"
_XNNPACK = "executorch.backends.xnnpack"
_DELEGATE = "executorch_call_delegate"
_INTEGER = "xnn_datatype_qint8"
_INFINITY = re.compile(r"(?<=: )(-?)\+?inf\b")  # Python's JSON parser knows the word "Infinity" alone
# Kernels that move or convert values and compute nothing.
_MOVES = frozenset(
    {"Convert", "StaticReshape", "StaticTranspose", "StaticSlice", "Copy", "getitem", "size", "sym_size"}
    | {"view_copy", "permute_copy", "slice_copy", "select_copy", "squeeze_copy", "unsqueeze_copy", "expand_copy"}
    | {"clone", "_clone_dim_order", "_to_dim_order_copy", "split_copy", "split_with_sizes_copy", "transpose_copy"}
    | {"quantize_per_tensor", "dequantize_per_tensor", "alias_copy"}
)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuTorch(Runtime):
    """ExecuTorch: a ``.pte`` file whose layers its delegate XNNPACK runs in integers, with the scales of training.

    Weights and activations are int8, biases int32. XNNPACK has no integer kernels for products of two activations and
    for average pooling over windows. Its integers may differ from the simulation's by one: it multiplies by the
    reciprocal of a scale, and adds with fixed-point multipliers. Weights of fewer than 8 bits are stored in 8.

    Args:
        max_batch: Largest batch that the file takes, at least 1; memory is planned for it.
    """

    promised: ClassVar[Mapping[tuple[Role, ...], frozenset[str]]] = {
        (Role.CONVOLUTION,): frozenset({"Conv2d", "DepthwiseConv2d", "ConvTranspose2d", "convolution"}),
        (Role.LINEAR,): frozenset({"FullyConnected", "linear", "addmm", "mm"}),
        (Role.ADD,): frozenset({"Add", "add"}),
        (Role.POOL,): frozenset({"GlobalAvgPooling2d", "AvgPooling2d", "mean", "avg_pool2d"}),
    }

    lacks: ClassVar[Mapping[Role, str]] = {Role.MATMUL: "XNNPACK multiplies two activations in floating point"}

    max_batch: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.max_batch, bool) or not isinstance(self.max_batch, int) or self.max_batch < 1:
            raise ValueError(f"max_batch must be a whole number of at least 1, got {self.max_batch!r}")

    @override
    def check(self, simulator: Simulator) -> None:
        check_activations(
            simulator,
            "XNNPACK",
            "activations of all 256 integers and one scale per tensor, as Affine() and "
            "Symmetric(granularity='tensor', narrow_range=False) make them",
            _is_full,
        )
        check_weights(simulator, "XNNPACK")

    @override
    def write(
        self, simulator: Simulator, network: nn.Module, example: Example, path: Path, shapes: OpenShapes
    ) -> Kernels:
        if shapes != OpenShapes():
            raise ExportError(
                "ExecuTorch plans memory for fixed sizes and takes any batch up to max_batch: leave out dynamic and "
                "batch, or choose another runtime"
            )
        exir = require("executorch.exir", _EXTRA)
        partitioner = require(f"{_XNNPACK}.partition.xnnpack_partitioner", _EXTRA)
        program = capture_program(simulator, network, *example, self.max_batch)
        try:
            with silence():
                lowered = exir.to_edge_transform_and_lower(
                    program,
                    partitioner=[partitioner.XnnpackPartitioner()],
                    # The validator's own pass over the operators would fix a dynamic batch.
                    compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
                )
                kernels = _inspect(lowered.exported_program().graph_module)
                content = lowered.to_executorch().buffer
        except Exception as error:  # a compiler raises whatever its many passes raise
            raise ExportError(f"{type(network).__name__} cannot be lowered to ExecuTorch: {cause_of(error)}") from error
        write_atomic(path, bytes(content))
        return kernels

    @override
    def load(self, path: Path) -> Runner:
        runtime = require("executorch.runtime", _EXTRA).Runtime.get()
        # One thread for all programs of the process: the runtime has one pool.
        require("executorch.extension.pybindings.portable_lib", _EXTRA)._unsafe_reset_threadpool(1)
        program = runtime.load_program(path.read_bytes())

        def run(*arrays: Any) -> list[Any]:
            tensors = [torch.as_tensor(array).contiguous() for array in arrays]
            # Loaded here, so that this function holds the program: a method does not keep its program alive.
            method = program.load_method("forward")
            outputs = [[each.clone() for each in method.execute(part)] for part in _parts(tensors, self.max_batch)]
            return [torch.cat(parts).numpy() for parts in zip(*outputs, strict=True)]

        return run


def _is_full(scheme: Scheme) -> bool:
    """Whether an activation has one scale and uses all 256 integers, to which the kernels clip."""
    return scheme.granularity == "tensor" and scheme.qmax - scheme.qmin == 255


def _parts(tensors: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Split a batch into parts of at most ``size`` samples."""
    batch = next((len(each) for each in tensors if each.dim()), 1)
    for begin in range(0, batch, size):
        yield [each[begin : begin + size] if each.dim() and len(each) == batch else each for each in tensors]


def _inspect(graph_module: Any) -> Kernels:
    """Sort the kernels of a lowered program: a delegate's by the type of their output; all others are floating."""
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for node in graph_module.graph.nodes:
        name = _name_of(node.target)
        if node.op == "get_attr":
            for kind, is_integer in _delegated(getattr(graph_module, node.target).processed_bytes):
                counts[kind] += 1
                if kind not in _MOVES:
                    (integer if is_integer else floating)[kind] += 1
        elif node.op == "call_function" and name != _DELEGATE:
            counts[name] += 1
            floating[name] += name not in _MOVES
    return Kernels(counts=dict(counts), integer=dict(integer), floating=dict(+floating))


def _name_of(target: Any) -> str:
    """``aten.view_copy.default`` and the like -> ``view_copy``."""
    name = getattr(target, "_name", None) or getattr(target, "__name__", str(target))
    return str(name).split("::")[-1].split(".")[0]


def _delegated(payload: bytes) -> Iterator[tuple[str, bool]]:
    """Read a delegate's own graph: each kernel's kind, and whether its output is int8."""
    serializer = require(f"{_XNNPACK}.serialization.xnnpack_graph_serialize", _EXTRA)
    header = serializer.XNNHeader.from_bytes(payload[: serializer.XNNHeader.EXPECTED_LENGTH])
    schema = importlib.resources.files(f"{_XNNPACK}.serialization") / "schema.fbs"
    with tempfile.TemporaryDirectory() as folder:
        stored, described = Path(folder, "graph.bin"), Path(folder, "schema.fbs")
        stored.write_bytes(payload[header.flatbuffer_offset :][: header.flatbuffer_size])
        described.write_bytes(schema.read_bytes())
        flatbuffer = require("executorch.exir._serialize._flatbuffer", _EXTRA)
        flatbuffer._flatc_decompile(folder, str(described), str(stored), ["--raw-binary"])
        text = Path(folder, "graph.json").read_text()
    graph = json.loads(_INFINITY.sub(r"\1Infinity", text))
    types = dict(map(_type_of, graph["xvalues"]))
    for node in graph["xnodes"]:
        kind, out = node["xnode_union_type"], node["xnode_union"]["output_id"]
        yield kind.removeprefix("_").removeprefix("XNN"), types[out] == _INTEGER


def _type_of(value: Mapping[str, Any]) -> tuple[int, str]:
    tensor = value["xvalue_union"]
    tensor = tensor.get("tensor_value", tensor)
    return tensor["id_out"], tensor["datatype"]
