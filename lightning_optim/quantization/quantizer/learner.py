"""Interface of quantizers whose values are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.functional import affine_qparams, quantize
from lightning_optim.quantization.quantizer.base import ActivationQuantizer, Operand, Quantizer
from lightning_optim.quantization.scheme import Scheme

Values = Mapping[str, Tensor]
"""What was learned about one tensor, by name."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the training of a value begins, and how it moves.

    Args:
        value: Its first entries, any shape; positive without a ``unit``.
        unit: What a step of 1 adds to each entry, shaped as ``value``; where it is 0, the entry stays. ``None``: a step
            of 1 multiplies the entry by e, so that it stays positive.
        decay: Factor of a positive value's L2 decay, at least 0: it adds ``decay * value`` to the gradient.
    """

    value: Tensor
    unit: Tensor | None = None
    decay: float = 0.0


class WeightLearner(Quantizer):
    """A quantizer of weights that learns values for each of them."""

    __slots__ = ()

    serves: ClassVar[frozenset[Operand]] = frozenset({Operand.WEIGHT})

    @abstractmethod
    def start(self, weight: Tensor) -> dict[str, Start]:
        """Return where the training of a weight's values begins, by name."""

    @abstractmethod
    def bind(self, values: Values) -> Quantizer:
        """Return the quantizer of one weight, with what was learned about it."""


class ActivationLearner(ActivationQuantizer):
    """A quantizer of activations that learns values for each of them."""

    __slots__ = ()

    @abstractmethod
    def start(self, scale: Tensor, zero_point: Tensor) -> dict[str, Start]:
        """Return where the training of an activation's values begins, given what its observed range asks for."""

    @abstractmethod
    def learned_qparams(self, values: Values) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, scalars with a gradient for the values."""


Learner = WeightLearner | ActivationLearner
"""A quantizer whose scales are trained, and get a gradient from ``fake``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedLearner(ActivationLearner):
    """An activation's learner of unsigned integers with one scale per tensor.

    Args:
        bits: Width of an integer, 1 to 8.
    """

    bits: int = 8

    @property
    @override
    def scheme(self) -> Scheme:
        return Scheme(bits=self.bits, signed="uint", symmetric=False, granularity="tensor")

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return affine_qparams(low, high, 0, self.scheme.qmax)

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return quantize(x.float(), scale, zero_point, self.scheme.qmin, self.scheme.qmax)
