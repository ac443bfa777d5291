"""What every quantizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

from torch import Tensor

from lightning_optim.quantization.functional import channel_range, quantize
from lightning_optim.quantization.rounding.fake_quantize import fake_quantize
from lightning_optim.quantization.scheme import Scheme


class Operand(Enum):
    """What a quantizer is made for."""

    WEIGHT = "weight"
    ACTIVATION = "activation"


_GRANULARITIES = {Operand.WEIGHT: ("tensor", "channel", "group"), Operand.ACTIVATION: ("tensor", "token")}


class Quantizer(ABC):
    """A rule that turns values into integers, and their range into a scale and a zero point.

    Attributes:
        serves: What it can quantize.
        scale_ignores_weight: Whether the scale of a weight does not grow with the weight. A batch norm that is
            folded in then multiplies the scale as well.
        learns: Whether its scales are trained, and get a gradient from ``fake``.
        is_traceable: Whether ``fake`` goes by its arguments alone, so that it can be part of a compiled graph.
    """

    __slots__ = ()

    serves: ClassVar[frozenset[Operand]] = frozenset(Operand)
    scale_ignores_weight: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    is_traceable: ClassVar[bool] = True

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """The integers in use."""

    @property
    def is_sign_symmetric(self) -> bool:
        """Whether weights of both signs are treated alike, so that a batch norm may turn them."""
        return self.scheme.qmin == -self.scheme.qmax

    @property
    def is_binary(self) -> bool:
        """Whether an activation becomes one of two values, so that nothing is left of one that has a single sign."""
        return False

    def weight_scale(self, weight: Tensor) -> Tensor:
        """Return the scale of a weight ``[O, I, ...]``: ``[O]``, a scalar, or ``[O, G]`` for groups of inputs."""
        low, high = channel_range(weight)
        if self.scheme.granularity == "tensor":
            low, high = low.min(), high.max()
        return self.qparams(low.float(), high.float())[0]

    @abstractmethod
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for values in ``[low, high]``, shaped as ``low``."""

    def check(self, operand: Operand) -> None:
        """Refuse to quantize what the rule is not made for.

        Raises:
            ValueError: If it can't quantize weights, or activations, at all or at this granularity.
        """
        if operand not in self.serves:
            other = next(iter(self.serves)).value
            raise ValueError(
                f"{type(self).__name__} quantizes {other}s, not {operand.value}s: choose another quantizer"
            )
        allowed = _GRANULARITIES[operand]
        if self.scheme.granularity not in allowed:
            raise ValueError(
                f"granularity of {operand.value}s must be one of {', '.join(allowed)}, "
                f"got {self.scheme.granularity!r} in {type(self).__name__}"
            )

    def dynamic_qparams(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero point of an activation as it is, or ``None`` if they follow from what was observed."""
        if self.scheme.granularity != "token":
            return None
        x = x.detach().float()
        return self.qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True))

    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the whole numbers that stand for ``x``, as floats; scale and zero point broadcast against it."""
        return quantize(x.float(), scale, zero_point, self.scheme.qmin, self.scheme.qmax)

    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        """Return ``(integers - zero_point) * scale``, with a gradient for ``x``.

        Args:
            x: Values; any shape and floating dtype. The arithmetic is in float32.
            scale: Step between two integers; broadcasts against ``x``.
            zero_point: Integer that stands for 0; ``None`` is 0, and faster.
            is_within: The caller knows that nothing is clipped.

        What needs ``x`` again in the backward derives from ``fake_quantize.KeepsInput``, and is the last step.
        """
        return fake_quantize(x, scale, zero_point, self.scheme.qmin, self.scheme.qmax, is_within=is_within)
