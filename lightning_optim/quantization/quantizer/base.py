"""What every quantizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_optim.quantization.scheme import Scheme


class Quantizer(ABC):
    """A rule that turns the range of some values into a scale and a zero point."""

    __slots__ = ()

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """The integers in use."""

    @abstractmethod
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for values in ``[low, high]``, shaped as ``low``."""
