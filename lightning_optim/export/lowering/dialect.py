"""Dialects: quantizing operators of a captured graph, as each family of runtimes reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.export.lowering.operators import (
    dequantize_constant,
    dequantize_symmetric,
    global_average_pool,
    quantize_dequantize,
)


@final
@dataclass(frozen=True, slots=True)
class ActivationConstants:
    """Quantization parameters of an activation, as constants of a graph.

    Args:
        scale: Step between two integers, a scalar.
        zero_point: Integer that stands for 0, a scalar of the type that the integers are stored in.
        step: ``scale`` as a number.
        zero: ``zero_point`` as a number.
        qmin: Smallest integer.
        qmax: Largest integer.
    """

    scale: Tensor
    zero_point: Tensor
    step: float
    zero: int
    qmin: int
    qmax: int


class Dialect(ABC):
    """Dialect: the quantizing operators that one family of runtimes reads."""

    zero_type: ClassVar[torch.dtype] = torch.int8
    """Type of the zero points of weights."""

    has_float_bias: ClassVar[bool]
    """Whether biases are stored as the floats that their int32 values stand for: some runtimes round by themselves."""

    keeps_bounds: ClassVar[bool] = True
    """Whether an activation's integers are clipped at the bounds of its scheme, and not only at those of their type."""

    @abstractmethod
    def activation(self, x: Tensor, constants: ActivationConstants) -> Tensor:
        """Round an activation to the values that its integers stand for."""

    @abstractmethod
    def constant(self, integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the weight or bias that stored integers stand for."""

    @abstractmethod
    def average(self, x: Tensor) -> Tensor:
        """Average an image over its height and width, ``[N, C, H, W]`` to ``[N, C, 1, 1]``."""


@final
class AffineDialect(Dialect):
    """Affine dialect: ONNX's QuantizeLinear and DequantizeLinear, explicit zero points and int32 biases, for CPUs."""

    has_float_bias: ClassVar[bool] = False

    @override
    def activation(self, x: Tensor, constants: ActivationConstants) -> Tensor:
        out: Tensor = quantize_dequantize(x, constants.scale, constants.zero_point, constants.qmin, constants.qmax)
        return out

    @override
    def constant(self, integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        out: Tensor = dequantize_constant(integers, scale, zero_point)
        return out

    @override
    def average(self, x: Tensor) -> Tensor:
        out: Tensor = global_average_pool(x)
        return out


@final
class SymmetricDialect(Dialect):
    """Symmetric dialect: ONNX's QuantizeLinear and DequantizeLinear, int8 and floating-point biases, for TensorRT."""

    has_float_bias: ClassVar[bool] = True
    keeps_bounds: ClassVar[bool] = False

    @override
    def activation(self, x: Tensor, constants: ActivationConstants) -> Tensor:
        limits = torch.iinfo(constants.zero_point.dtype)
        out: Tensor = quantize_dequantize(x, constants.scale, constants.zero_point, limits.min, limits.max)
        return out

    @override
    def constant(self, integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        out: Tensor = dequantize_symmetric(integers, scale)
        return out

    @override
    def average(self, x: Tensor) -> Tensor:
        out: Tensor = global_average_pool(x)
        return out
