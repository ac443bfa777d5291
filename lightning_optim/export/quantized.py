"""A trained, simulated network as a file whose layers run as integer kernels."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from typing_extensions import override

from lightning_optim.atomic import write_atomic
from lightning_optim.errors import ExportError
from lightning_optim.export.dependency import require
from lightning_optim.export.kernels import Kernels, inspect_kernels
from lightning_optim.export.onnx import export_onnx
from lightning_optim.export.quantized_operators import (
    dequantize_constant,
    global_average_pool,
    quantize_dequantize,
    translations,
)
from lightning_optim.quantization.backend import Backend
from lightning_optim.quantization.fold import fold_batch_norm
from lightning_optim.quantization.functional import bias_floor, per_channel, quantize, quantize_bias
from lightning_optim.quantization.operators import Role
from lightning_optim.quantization.placement import EXCLUDED
from lightning_optim.quantization.plan import BEFORE_SOFTMAX, Operator
from lightning_optim.quantization.simulation import weight_scale
from lightning_optim.quantization.simulator import Simulator

# What is promised in integers -> what it is called if it is not.
_FLOAT_KERNELS: dict[tuple[Role, ...], frozenset[str]] = {
    (Role.CONVOLUTION,): frozenset({"Conv", "FusedConv", "ConvTranspose"}),
    (Role.LINEAR, Role.MATMUL): frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul"}),
    (Role.ADD,): frozenset({"Add"}),
    (Role.POOL,): frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "MaxPool"}),
}
# What stays in floating point as a whole -> how many of these it holds: both products, and the mask that is added.
_FLOAT_PARTS: dict[str, dict[Role, int]] = {"scaled_dot_product_attention": {Role.MATMUL: 2, Role.ADD: 1}}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedExport:
    """What was written.

    Args:
        path: The file.
        num_bytes: Its size.
        kernels: What ONNX Runtime runs for it.
    """

    path: Path
    num_bytes: int
    kernels: Kernels


@final
class ConstantBackend(Backend, nn.Module):
    """Emits quantizing operators, and keeps the integers that a weight or a bias becomes as buffers.

    The first pass, on real tensors, makes the constants; later passes, such as one of an exporter, find them.

    Args:
        simulator: Knows ranges and quantizers.
    """

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self._ranges, self._weights = simulator.ranges, simulator.weight_quantizer
        self._names: dict[str, str] = {}
        self._saturating: dict[str, bool] = {}

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        scale, zero_point = self._qparams(key)
        out: Tensor = quantize_dequantize(tensor, scale, zero_point)
        return out

    @override
    def moved(self, tensor: Tensor, key: str) -> Tensor:
        return self.activation(tensor, key)

    @override
    def folds(self, norm: _BatchNorm) -> bool:
        return True

    @override
    def weight(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: _BatchNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        if f"{key}/weight" not in self._names:
            self._make_constants(weight, bias, key, input_key, norm)
        values = dequantize_constant(
            *(self._constant(f"{key}/{part}") for part in ("weight", "weight_scale", "weight_zero_point"))
        )
        if f"{key}/bias" not in self._names:
            return values, None
        parts = ("bias", "bias_scale", "bias_zero_point")
        return values, dequantize_constant(*(self._constant(f"{key}/{part}") for part in parts))

    @override
    def linear(self, inputs: tuple[Tensor, Tensor, Tensor | None], key: str, input_key: str) -> Tensor:
        x, weight, bias = inputs
        if x.dim() == 2 or not self._ranges.has(key):
            return functional.linear(x, weight, bias)
        # As a matrix it becomes one integer kernel; otherwise the bias would be added in floating point. Rounding the
        # output at once changes nothing: if a ReLU follows, the integers of its range begin at 0.
        flat = self.moved(x.flatten(0, -2), input_key)
        out = self.activation(functional.linear(flat, weight, bias), key)
        return out.view(*x.shape[:-1], out.shape[-1])

    @override
    def clip(self, tensor: Tensor, key: str, upper: float) -> Tensor:
        if key not in self._saturating:
            highest = self._ranges.range_of(key)[1] if self._ranges.has(key) else float("inf")
            self._saturating[key] = highest <= upper * (1.0 + 1e-6)
        # The largest integer is the bound then, and a kernel takes a ReLU in.
        return functional.relu(tensor) if self._saturating[key] else functional.hardtanh(tensor, 0.0, upper)

    @override
    def pool(
        self, function: Callable[..., Any], tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        name = function.__name__
        if name == "avg_pool2d":
            out: Tensor = function(tensor, *args, **kwargs)
            return out
        keeps = name != "mean" or (args[1] if len(args) > 1 else kwargs.get("keepdim", False))
        tokens = tensor.dim() == 3
        pooled: Tensor = global_average_pool(tensor.transpose(1, 2).unsqueeze(-1) if tokens else tensor)
        if not keeps:
            return pooled.flatten(1)
        return pooled.flatten(1).unsqueeze(1) if tokens else pooled

    def _make_constants(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: _BatchNorm | None
    ) -> None:
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm)
        input_scale, _ = self._qparams(input_key)
        floor = None if bias is None else bias_floor(bias, input_scale)
        scale = weight_scale(weight, self._weights, floor)
        scheme, spread = self._weights.scheme, per_channel(scale, weight)
        whole = quantize(weight.detach(), spread, torch.zeros_like(spread), scheme.qmin, scheme.qmax)
        self._keep(f"{key}/weight", whole.to(torch.int8))
        self._keep(f"{key}/weight_scale", scale)
        self._keep(f"{key}/weight_zero_point", torch.zeros_like(scale, dtype=torch.int8))
        if bias is not None:
            bias_scale = (input_scale * scale).expand(bias.shape).clone()
            self._keep(f"{key}/bias", quantize_bias(bias.detach(), bias_scale))
            self._keep(f"{key}/bias_scale", bias_scale)
            self._keep(f"{key}/bias_zero_point", torch.zeros_like(bias_scale, dtype=torch.int32))

    def _qparams(self, key: str) -> tuple[Tensor, Tensor]:
        if f"{key}/scale" not in self._names:
            found = self._ranges.qparams(key, torch.device("cpu"))
            if found is None:
                raise ExportError(
                    f"{key} was never observed in training, so it has no range: train through this branch, "
                    "or leave the layer out with targets.exclude"
                )
            self._keep(f"{key}/scale", found[0].clone())
            self._keep(f"{key}/zero", found[1].to(torch.uint8))
        return self._constant(f"{key}/scale"), self._constant(f"{key}/zero")

    def _keep(self, name: str, value: Tensor) -> None:
        self._names[name] = f"constant_{len(self._names)}"
        self.register_buffer(self._names[name], value.detach())

    def _constant(self, name: str) -> Tensor:
        return self.get_buffer(self._names[name])


@final
class DeployedNetwork(nn.Module):
    """A network that computes with integer constants and quantizing operators, ready for an exporter.

    Args:
        network: The trained network; it is copied.
        simulator: What was learned about it.
    """

    def __init__(self, network: nn.Module, simulator: Simulator) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float().eval()
        self.backend = ConstantBackend(simulator)
        self._simulator = simulator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network's own forward."""
        plain = type(self.network).forward.__get__(self.network)
        with self._simulator.placed(self.network, self.backend) as placement:
            output = plain(*args, **kwargs)
        return placement.finish(output)


def export_quantized(
    simulator: Simulator,
    network: nn.Module,
    path: str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    allow_float: Sequence[str] = (),
) -> QuantizedExport:
    """Write a network to an ONNX file with int8 weights, and make sure that it runs in integers.

    The live network stays as it is. Batch norms are folded, biases are int32, average pooling over the whole image
    becomes ``GlobalAveragePool``. The file is then optimized by ONNX Runtime as for a run, and its kernels are counted.

    Args:
        simulator: What training learned.
        network: The trained network.
        path: The file to write.
        args: Example positional inputs of the network; without any, those of the recorded batch.
        kwargs: Example keyword inputs.
        allow_float: ONNX operators, such as ``"Add"``, that may stay in floating point besides those of excluded
            layers.

    Raises:
        ExportError: If the simulator has no ranges or integers that the runtime does not know, if the network can't be
            exported, or if a convolution, linear layer, addition or pooling stays in floating point.
    """
    _check_schemes(simulator)
    if not args and not kwargs:
        if simulator.example is None:
            raise ExportError("an export needs example inputs of the network: pass args")
        args, kwargs = simulator.example
    inputs = pytree.tree_map_only(
        Tensor,
        lambda leaf: leaf.detach().cpu().float() if leaf.is_floating_point() else leaf.detach().cpu(),
        (tuple(args), dict(kwargs or {})),
    )
    deployed = DeployedNetwork(network, simulator)
    with torch.no_grad():
        deployed(*inputs[0], **inputs[1])
    part = Path(path).with_name(f".{Path(path).name}.unchecked")
    try:
        export_onnx(deployed, inputs[0], part, kwargs=inputs[1], translations=translations())
        _name_inputs(part, network, inputs[0])
        kernels = inspect_kernels(part)
        _check_kernels(kernels, simulator, allow_float)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return QuantizedExport(path=Path(path), num_bytes=Path(path).stat().st_size, kernels=kernels)


def _name_inputs(path: Path, network: nn.Module, args: tuple[Any, ...]) -> None:
    """Call the file's positional inputs what the network's own forward calls them; a nested one keeps its name."""
    onnx = require("onnx")
    model = onnx.load(path)
    parameters = list(inspect.signature(type(network).forward).parameters.values())[1:]
    named = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]
    names = {f"args_{place}": name for place, (name, _) in enumerate(zip(named, args, strict=False))}
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    write_atomic(path, model.SerializeToString(deterministic=True))


def _check_schemes(simulator: Simulator) -> None:
    if not simulator.is_ready:
        raise ExportError("there are no activation ranges yet: train at least two batches within the window")
    activation, weight = simulator.activation_quantizer.scheme, simulator.weight_quantizer.scheme
    if activation.signed != "uint" or activation.bits != 8 or activation.granularity != "tensor":
        raise ExportError(
            f"ONNX Runtime's integer kernels need uint8 activations of one scale per tensor, got {activation}"
        )
    if weight.signed != "int" or not weight.symmetric:
        raise ExportError(f"ONNX Runtime's integer kernels need signed symmetric weights, got {weight}")


def _check_kernels(kernels: Kernels, simulator: Simulator, allow_float: Sequence[str]) -> None:
    operators = simulator.plan.operators.values() if simulator.plan is not None else ()
    floating = {}
    for roles, names in _FLOAT_KERNELS.items():
        excluded = sum(_num_float(op, role) for op in operators for role in roles)
        found = {name: kernels.floating[name] for name in names if name in kernels.floating and name not in allow_float}
        if sum(found.values()) > excluded:
            floating.update(found)
    if floating:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(floating.items()))
        raise ExportError(
            f"{listed} would run in floating point; leave the layers out with targets.exclude, "
            f"or allow it with allow_float={sorted(floating)}"
        )


def _num_float(operator: Operator, role: Role) -> int:
    """How many kernels of a role an operator may leave in floating point: as the user, or the table, says."""
    parts = _FLOAT_PARTS.get(operator.name, {}).get(role, 0)
    return parts + int(operator.note in (EXCLUDED, BEFORE_SOFTMAX) and operator.role is role)
