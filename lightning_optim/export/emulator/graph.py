"""Emulation of an exported file: its integer kernels, computed by torch instead of by the runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from lightning_optim.errors import ArtefactError
from lightning_optim.export.emulator.arithmetic import Integers, QuantizationParameters
from lightning_optim.export.emulator.operators import INTEGER_OPERATORS, float_product
from lightning_optim.optional import require

_MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@final
@dataclass(frozen=True, slots=True)
class Pending:
    """Pending operator: its kernel depends on its reader, since only an output that is rounded at once is an integer.

    Args:
        node: The operator.
        inputs: What it reads, all of it integers.
        is_clipped: Whether a ReLU follows, which the kernel includes where the output's integers begin at zero.
        moves: Views that follow, each with what else it reads: a runtime rounds before them.
    """

    node: Any
    inputs: tuple[Integers, ...]
    is_clipped: bool = False
    moves: tuple[tuple[Any, tuple[Value, ...]], ...] = ()


Value: TypeAlias = "Tensor | Integers | Pending"


@final
class IntegerGraph:
    """Emulator of ONNX Runtime's integer kernels, for an ONNX file of ``QuantizeLinear`` and ``DequantizeLinear``.

    It reads what the export wrote, so it tests the file and not the simulation. It decides which operators become one
    kernel with the rounding that follows them; ``lightning_optim.export.emulator.arithmetic`` computes that kernel.
    ONNX Runtime runs every operator that has no integer kernel, one at a time.

    Args:
        path: The file.

    Attributes:
        computed: Operator -> how many of its nodes were computed in integers by the last run.

    Raises:
        ArtefactError: If the file is missing or no model, or has branches or loops.

    Example:
        Inputs, weights and outputs have the scale 0.01, outputs the zero point 118. The first input is 100 and 0: the
        accumulator is ``100 * 127 + 0 * -64 + 1000 = 13700``, with the bias in steps of ``0.01 * 0.01``. It is
        requantized by ``0.01 * 0.01 / 0.01``: the output is ``137 + 118 = 255``, which stands for 1.37.

        >>> import tempfile
        >>> from lightning_optim.export import calibrate
        >>> network, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.55]])
        >>> network.load_state_dict({"weight": torch.tensor([[1.27, -0.64]]), "bias": torch.tensor([0.1])})
        <All keys matched successfully>
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = calibrate(network, [x]).export(f"{folder}/model.onnx")
        ...     graph = IntegerGraph(export.path)
        >>> (output,) = graph.run(x)
        >>> output.integers.flatten().tolist(), dict(graph.computed)
        ([255.0, 0.0, 92.0], {'Gemm': 1})
    """

    def __init__(self, path: str | Path) -> None:
        onnx = require("onnx")
        if not Path(path).is_file():
            raise ArtefactError(f"no ONNX model at {path}: was the export finished?")
        try:
            self._model = onnx.load(path)
        except Exception as error:  # protobuf raises a class of its own
            raise ArtefactError(f"{path} is not an ONNX model") from error
        graph = self._model.graph
        foreign = sorted({node.op_type for node in graph.node if "Sequence" in node.op_type or _has_body(node)})
        if foreign:
            raise ArtefactError(
                f"{path} has branches, loops or lists of tensors ({', '.join(foreign)}), which are not emulated: "
                "compare its outputs with the simulation's, as an export does with Acceptance(batches=...)"
            )
        self._constants: dict[str, Tensor] = {each.name: _tensor_of(each) for each in graph.initializer}
        self._output_names = [value.name for value in graph.output]
        reads = [name for node in graph.node for name in node.input]
        self._readers = Counter([*reads, *self._output_names])
        self._sessions: dict[str, Any] = {}
        self.computed: Counter[str] = Counter()

    def run(self, *arrays: Any) -> list[Tensor | Integers]:
        """Run one batch, an array or CPU tensor for each input in the file's order; rounded outputs are integers."""
        names = [value.name for value in self._model.graph.input]
        if len(arrays) != len(names):
            raise ValueError(f"the model takes {len(names)} inputs {tuple(names)}, got {len(arrays)}")
        values: dict[str, Value] = dict(self._constants)
        values.update({name: torch.as_tensor(array) for name, array in zip(names, arrays, strict=True)})
        self.computed = Counter()
        for node in self._model.graph.node:
            outputs = self._run_node(node, values)
            values.update(dict(zip(node.output, outputs, strict=False)))
        return [self._output(values[name]) for name in self._output_names]

    def _run_node(self, node: Any, values: Mapping[str, Value]) -> Sequence[Value]:
        inputs = [values[name] for name in node.input if name]
        if node.op_type == "QuantizeLinear":
            return [self._quantize(inputs)]
        if node.op_type == "DequantizeLinear":
            return [_dequantize(node, inputs)]
        if node.op_type == "Clip" and isinstance(inputs[0], Integers) and not _real(inputs[1]).is_floating_point():
            # Activations of fewer bits than their type: the bounds are integers, and no values.
            low, high = (float(_real(bound)) for bound in inputs[1:])
            return [Integers(inputs[0].integers.clamp(low, high), inputs[0].qparams)]
        is_alone = self._readers[node.output[0]] == 1
        if is_alone and isinstance(inputs[0], Pending) and node.op_type in _MOVES | {"Relu"}:
            move = () if node.op_type == "Relu" else ((node, tuple(inputs[1:])),)
            is_clipped = inputs[0].is_clipped or node.op_type == "Relu"
            return [replace(inputs[0], is_clipped=is_clipped, moves=inputs[0].moves + move)]
        if is_alone and node.op_type in INTEGER_OPERATORS:
            integers = tuple(value for value in inputs if isinstance(value, Integers))
            if len(integers) == len(inputs):
                return [Pending(node, integers)]
        return self._run_float(node, inputs)

    def _quantize(self, inputs: Sequence[Value]) -> Integers:
        x, scale, zero_point = inputs[0], _real(inputs[1]), _real(inputs[2])
        limits = torch.iinfo(zero_point.dtype)
        qparams = QuantizationParameters(scale, zero_point.float(), limits.min, limits.max)
        if isinstance(x, Pending) and (not x.is_clipped or float(qparams.zero_point) == qparams.low):
            self.computed[x.node.op_type] += 1
            rounded = INTEGER_OPERATORS[x.node.op_type](x.node, x.inputs, qparams)
            return Integers(self._moved(rounded.integers, x), qparams)
        return qparams.quantize(self._float(x))

    def _output(self, value: Value) -> Tensor | Integers:
        """Value of an output of the graph: nothing rounds an operator that is still pending there."""
        return self._float(value) if isinstance(value, Pending) else value

    def _float(self, value: Value) -> Tensor:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Integers):
            return value.values()
        product = float_product(value.node, value.inputs)
        if product is None:
            product = self._run_float(value.node, value.inputs)[0]
        else:
            self.computed[value.node.op_type] += 1
        return self._moved(torch.relu(product) if value.is_clipped else product, value)

    def _moved(self, tensor: Tensor, pending: Pending) -> Tensor:
        for node, rest in pending.moves:
            tensor = self._run_float(node, (tensor, *rest))[0]
        return tensor

    def _run_float(self, node: Any, inputs: Sequence[Value]) -> list[Tensor]:
        tensors = [self._float(value) for value in inputs]
        names = [name for name in node.input if name]
        feed = {name: tensor.contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
        key = node.output[0]
        if key not in self._sessions:
            self._sessions[key] = self._session(node, feed)
        changing = {name: array for name, array in feed.items() if name not in self._constants}
        return [torch.from_numpy(array) for array in self._sessions[key].run(None, changing)]

    def _session(self, node: Any, feed: Mapping[str, Any]) -> Any:
        onnx, runtime = require("onnx"), require("onnxruntime")
        helper = onnx.helper
        # Vectors of integers may be shapes and sizes, whose number an operator's own shape depends on.
        is_open = {name: array.dtype != "int64" or array.ndim != 1 for name, array in feed.items()}
        shapes = {name: [None] * array.ndim if is_open[name] else list(array.shape) for name, array in feed.items()}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shapes[name])
            for name, array in feed.items()
            if name not in self._constants
        ]
        constants = [
            onnx.numpy_helper.from_array(array, name) for name, array in feed.items() if name in self._constants
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = helper.make_graph([node], "one", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _has_body(node: Any) -> bool:
    return any(attribute.HasField("g") for attribute in node.attribute)


def _dequantize(node: Any, inputs: Sequence[Value]) -> Integers:
    stored, scale, zero_point = inputs[0], _real(inputs[1]), _real(inputs[2])
    limits, zero = torch.iinfo(zero_point.dtype), zero_point.float()
    if isinstance(stored, Integers):
        return Integers(stored.integers, QuantizationParameters(scale, zero, limits.min, limits.max))
    integers = _real(stored)
    if scale.dim():
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        shape = [-1 if place == axis % integers.dim() else 1 for place in range(integers.dim())]
        scale, zero = scale.view(shape), zero.view(shape)
    is_wide = integers.dtype is torch.int32  # a float32 does not hold every int32
    qparams = QuantizationParameters(scale, zero, limits.min, limits.max)
    return Integers(integers.double() if is_wide else integers.float(), qparams)


def _real(value: Value) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _tensor_of(initializer: Any) -> Tensor:
    array = require("onnx").numpy_helper.to_array(initializer)
    is_narrow = array.dtype.kind not in "biuf"  # 2 or 4 bits, which torch has no arithmetic for
    return torch.from_numpy((array.astype("int8") if is_narrow else array).copy())
