"""Lowering of a simulated network: its weights and biases become integer constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lightning_optim.errors import ExportError
from lightning_optim.export.lowering.blocks import pack_blocks
from lightning_optim.export.lowering.dialect import ActivationConstants, Dialect
from lightning_optim.export.lowering.operators import linear_of_blocks
from lightning_optim.quantization.fold import fold_batch_norm
from lightning_optim.quantization.functional import bias_floor, per_channel, quantize_bias
from lightning_optim.quantization.simulation.backend import Backend
from lightning_optim.quantization.simulation.operators import Role
from lightning_optim.quantization.simulation.rounding_backend import weight_scale
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.surgery.containers import as_plain
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.torch_private import BatchNorm


@final
class ConstantBackend(Backend, nn.Module):
    """Backend that emits quantizing operators, and keeps integer weights and biases as buffers.

    The first pass, on real tensors, makes the constants; later passes, such as an exporter's, read them.

    Args:
        simulator: Ranges and quantizers of the network.
        dialect: The quantizing operators that the runtime reads.
        narrowest: Fewest bits that a weight beside unquantized activations may be packed in: 2, 4 or 8.

    Attributes:
        tapped: Takes every rounded activation by key, unless it is ``None``.
    """

    def __init__(self, simulator: Simulator, dialect: Dialect, narrowest: int) -> None:
        super().__init__()
        self._simulator, self._dialect, self._ranges = simulator, dialect, simulator.ranges
        self._narrowest, self._block_bits = narrowest, dict[str, int]()
        self._names: dict[str, str] = {}
        self._numbers: dict[str, tuple[float, int]] = {}
        self._largest: dict[str, int] = {}
        self._met, self._is_made = set[str](), False
        self.tapped: dict[str, Tensor] | None = None

    @override
    def serves(self, key: str) -> bool:
        # Models compute masks in a capture that they leave out where values can be read: these have no range.
        if not self._is_made:
            self._met.add(key)
        return key in self._met

    def end_pass(self) -> None:
        """End a pass; after the first one, all constants are made."""
        self._is_made = True

    @override
    def activation(self, tensor: Tensor, key: str) -> Tensor:
        if self._is_exact(key):
            return tensor
        rounded = self._dialect.activation(tensor, self._activation_constants(key))
        if self.tapped is not None:
            self.tapped.setdefault(key, rounded)
        return rounded

    @override
    def moved(self, tensor: Tensor, key: str) -> Tensor:
        return self.activation(tensor, key)

    @override
    def pass_unknown(self, key: str) -> NoReturn:
        raise ExportError(f"{key} has no range: {self._simulator.why_no_range(key)}")

    @override
    def folds(self, norm: BatchNorm) -> bool:
        return True

    @override
    def weight(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: BatchNorm | None
    ) -> tuple[Tensor, Tensor | None]:
        if f"{key}/weight" not in self._names:
            self._make_constants(weight, bias, key, input_key, norm)
        # Where the weight lies in blocks, the layer's operator reads those, and only the shape of this one.
        values = weight if key in self._block_bits else self._dialect.constant(*self._stored(f"{key}/weight"))
        if f"{key}/float_bias" in self._names:
            return values, self._constant(f"{key}/float_bias")
        if f"{key}/bias" not in self._names:
            return values, None
        return values, self._dialect.constant(*self._stored(f"{key}/bias"))

    @override
    def linear(self, inputs: tuple[Tensor, Tensor, Tensor | None], key: str, input_key: str) -> Tensor:
        x, weight, bias = inputs
        if key in self._block_bits:
            packed, scale = self._constant(f"{key}/weight"), self._constant(f"{key}/weight_scale")
            out: Tensor = linear_of_blocks(x, packed, scale, bias, weight.shape[1], self._block_bits[key])
            return out
        if x.dim() == 2 or not self._ranges.has(key):
            return functional.linear(x, weight, bias)
        # On a matrix, the layer becomes one integer kernel; on more dimensions, its bias would be added in floating
        # point. Rounding the output at once changes nothing: if a ReLU follows, the integers of its range begin at 0.
        flat = self.moved(x.flatten(0, -2), input_key)
        out = self.activation(functional.linear(flat, weight, bias), key)
        return out.view(*x.shape[:-1], out.shape[-1])

    @override
    def clip(self, tensor: Tensor, key: str, upper: float) -> Tensor:
        if self._is_exact(key) or not self._ranges.has(key):
            return functional.hardtanh(tensor, 0.0, upper)
        constants = self._unclipped_constants(key)
        steps = np.rint(np.float32(upper) / np.float32(constants.step))  # in float32, as a runtime divides
        largest = int(steps) + constants.zero
        if largest < constants.qmax and not self._dialect.keeps_bounds:
            return functional.hardtanh(tensor, 0.0, upper)
        # The largest integer is then the bound; what is left is a ReLU, which a kernel includes.
        self._largest[key] = min(largest, self._largest.get(key, constants.qmax))
        return functional.relu(tensor)

    @override
    def pool(
        self, function: Callable[..., Any], tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        name = function.__name__
        if name == "avg_pool2d":
            out: Tensor = function(tensor, *args, **kwargs)
            return out
        keeps = name != "mean" or (args[1] if len(args) > 1 else kwargs.get("keepdim", False))
        tokens, sides = name == "mean" and tensor.dim() == 3, tensor.dim() - 2
        image = tensor.transpose(1, 2) if tokens else tensor
        pooled = self._dialect.average(image.unsqueeze(-1) if sides == 1 else image.flatten(3) if sides == 3 else image)
        if not keeps:
            return pooled.flatten(1)
        if tokens:
            return pooled.flatten(1).unsqueeze(1)
        return pooled.squeeze(-1) if sides == 1 else pooled.unsqueeze(-1) if sides == 3 else pooled

    def _make_constants(
        self, weight: Tensor, bias: Tensor | None, key: str, input_key: str, norm: BatchNorm | None
    ) -> None:
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm)
        quantizer = self._simulator.weight_quantizer_of(key)
        input_scale = None if self._is_exact(input_key) else self._activation_constants(input_key).scale
        floor = None if bias is None or input_scale is None else bias_floor(bias, input_scale)
        scale = weight_scale(weight, quantizer, floor, norm)
        spread = per_channel(scale, weight)
        integers = quantizer.integers(weight.detach(), spread, torch.zeros_like(spread))
        if self._is_linear(key) and (input_scale is None or scale.dim() == 2):
            blocks = pack_blocks(integers, scale, self._narrowest)
            self._block_bits[key] = blocks.bits
            self._keep(f"{key}/weight", blocks.packed)
            self._keep(f"{key}/weight_scale", blocks.scale)
        else:
            self._keep(f"{key}/weight", integers.to(torch.int8))
            self._keep(f"{key}/weight_scale", scale)
            self._keep(f"{key}/weight_zero_point", torch.zeros_like(scale, dtype=self._dialect.zero_type))
        if bias is None:
            return
        if input_scale is None or scale.dim() == 2:  # the sum is no integer, so the bias is none
            self._keep(f"{key}/float_bias", bias)
            return
        self._make_bias(bias.detach(), (input_scale * scale).expand(bias.shape).clone(), key)

    def _make_bias(self, bias: Tensor, scale: Tensor, key: str) -> None:
        integers = quantize_bias(bias, scale)
        if self._dialect.has_float_bias:
            self._keep(f"{key}/float_bias", integers.to(scale.dtype) * scale)
            return
        self._keep(f"{key}/bias", integers)
        self._keep(f"{key}/bias_scale", scale)
        self._keep(f"{key}/bias_zero_point", torch.zeros_like(scale, dtype=torch.int32))

    def _is_exact(self, key: str) -> bool:
        return self._simulator.activations.quantizer_of(key).scheme.is_exact

    def _is_linear(self, key: str) -> bool:
        plan = self._simulator.plan
        return plan is not None and plan.operators[key].role is Role.LINEAR

    def _activation_constants(self, key: str) -> ActivationConstants:
        constants = self._unclipped_constants(key)
        return replace(constants, qmax=self._largest.get(key, constants.qmax))

    def _unclipped_constants(self, key: str) -> ActivationConstants:
        scheme = self._simulator.activations.quantizer_of(key).scheme
        if key not in self._numbers:
            found = self._ranges.qparams(key, torch.device("cpu"))
            if found is None:
                self.pass_unknown(key)
            self._keep(f"{key}/scale", found[0].clone())
            self._keep(f"{key}/zero", found[1].to(torch.uint8 if scheme.signed == "uint" else torch.int8))
            self._numbers[key] = float(found[0]), int(found[1])
        scale, zero_point = self._constant(f"{key}/scale"), self._constant(f"{key}/zero")
        return ActivationConstants(scale, zero_point, *self._numbers[key], scheme.qmin, scheme.qmax)

    def _keep(self, name: str, value: Tensor) -> None:
        self._names[name] = f"constant_{len(self._names)}"
        self.register_buffer(self._names[name], value.detach())

    def _constant(self, name: str) -> Tensor:
        return self.get_buffer(self._names[name])

    def _stored(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        return self._constant(name), self._constant(f"{name}_scale"), self._constant(f"{name}_zero_point")


@final
class DeployedNetwork(nn.Module):
    """Lowered network: it computes with integer constants and quantizing operators, ready for an exporter.

    Args:
        network: The trained network; it is copied.
        simulator: Ranges and quantizers of the network.
        dialect: The quantizing operators that the runtime reads.
        narrowest: Fewest bits that a weight beside unquantized activations may be packed in: 2, 4 or 8.

    Example:
        Inputs in ``[0, 2.55]`` have the scale ``2.55 / 255 = 0.01``, weights in ``[-1.27, 1.27]`` the scale
        ``1.27 / 127 = 0.01``. So 1.27 is stored as 127, and the bias 0.1, in steps of ``0.01 * 0.01``, as 1000.

        >>> from lightning_optim.export import calibrate
        >>> from lightning_optim.export.lowering.dialect import AffineDialect
        >>> network, x = nn.Linear(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.55]])
        >>> network.load_state_dict({"weight": torch.tensor([[1.27, -0.64]]), "bias": torch.tensor([0.1])})
        <All keys matched successfully>
        >>> quantized = calibrate(network, [x])
        >>> deployed = DeployedNetwork(network, quantized.simulator, AffineDialect())
        >>> torch.equal(deployed(x), quantized.simulated()(x))
        True
        >>> [each.tolist() for each in deployed.buffers() if each.dtype in (torch.int8, torch.int32) and each.any()]
        [[[127, -64]], [1000]]
    """

    def __init__(self, network: nn.Module, simulator: Simulator, dialect: Dialect, narrowest: int = 8) -> None:
        super().__init__()
        self.network = eval_copy(network).cpu().float()
        self.backend = ConstantBackend(simulator, dialect, narrowest)
        self._simulator = simulator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network's own forward."""
        plain = type(self.network).forward.__get__(self.network)
        with self._simulator.placed(self.network, self.backend) as placement:
            output = plain(*args, **kwargs)
        self.backend.end_pass()
        return as_plain(placement.finish(output))
