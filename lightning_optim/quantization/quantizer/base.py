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

    def weight_range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the range of every output channel, each ``[O]``, to be passed to ``qparams``."""
        return channel_range(weight)

    @abstractmethod
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for values in ``[low, high]``, shaped as ``low``."""
