"""Interface of quantizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.functional import channel_range
from lightning_optim.quantization.scheme import Scheme


class Operand(Enum):
    """Operand that a quantizer is made for."""

    WEIGHT = "weight"
    ACTIVATION = "activation"


class Quantizer(ABC):
    """Quantizer: turns values into integers, and their range into a scale and a zero point.

    Attributes:
        serves: What it can quantize.
    """

    __slots__ = ()

    serves: ClassVar[frozenset[Operand]]

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """The integers in use."""

    @abstractmethod
    def weight_scale(self, weight: Tensor) -> Tensor:
        """Return the scale of a weight ``[O, I, ...]``: ``[O]``, a scalar, or ``[O, G]`` for groups of inputs."""

    @abstractmethod
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for values in ``[low, high]``, shaped as ``low``."""

    @abstractmethod
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the whole numbers that stand for ``x``, as floats; scale and zero point broadcast against it."""

    @abstractmethod
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        """Return ``(integers - zero_point) * scale``, with a gradient for ``x``.

        Args:
            x: Values; any shape and floating dtype. The arithmetic is in float32.
            scale: Step between two integers; broadcasts against ``x``.
            zero_point: Integer that stands for 0; ``None`` is 0, and faster.
            is_within: The caller knows that nothing is clipped.

        What needs ``x`` again in the backward derives from ``fake_quantize.KeepsInput``, and is the last step.
        """


class ActivationQuantizer(Quantizer):
    """A quantizer of activations alone."""

    __slots__ = ()

    serves: ClassVar[frozenset[Operand]] = frozenset({Operand.ACTIVATION})

    @final
    @override
    def weight_scale(self, weight: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} quantizes activations, not weights: choose another quantizer")


class DynamicQuantizer(ActivationQuantizer):
    """A quantizer of activations with a rule of its own for the scale, which it finds anew at every pass."""

    __slots__ = ()

    @abstractmethod
    def own_qparams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of an activation as it is; both broadcast against it."""


class FixedScaleQuantizer(Quantizer):
    """A quantizer of weights whose scale ignores the weight: it does not grow with it.

    A batch norm that is folded into the weight multiplies the scale as well.
    """

    __slots__ = ()

    serves: ClassVar[frozenset[Operand]] = frozenset({Operand.WEIGHT})


def range_scale(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """Return the scale that covers the range of a weight: ``[O]``, or a scalar at the granularity ``"tensor"``."""
    low, high = channel_range(weight)
    if quantizer.scheme.granularity == "tensor":
        low, high = low.min(), high.max()
    return quantizer.qparams(low.float(), high.float())[0]


def dynamic_qparams(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return scale and zero point of an activation as it is, or ``None`` if they follow from what was observed."""
    if isinstance(quantizer, DynamicQuantizer):
        return quantizer.own_qparams(x)
    if quantizer.scheme.granularity != "token":
        return None
    x = x.detach().float()
    return quantizer.qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True))
