"""What every quantizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_optim.quantization.functional import channel_range
from lightning_optim.quantization.scheme import Scheme


class Quantizer(ABC):
    """A rule that turns the range of some values into a scale and a zero point."""

    __slots__ = ()

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """The integers in use."""

    def weight_scale(self, weight: Tensor) -> Tensor:
        """Return the scale of a weight ``[O, ...]``, so large that no value is clipped: ``[O]``, or a scalar."""
        low, high = channel_range(weight)
        if self.scheme.granularity == "tensor":
            low, high = low.min(), high.max()
        return self.qparams(low.float(), high.float())[0]

    @abstractmethod
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for values in ``[low, high]``, shaped as ``low``."""
