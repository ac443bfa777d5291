"""Quantizers whose values are given levels around 0."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.functional import symmetric_scale
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.rounding.levels import straight_through


class LevelQuantizer(Quantizer):
    """Rounds to the nearest of some levels, each a whole number of steps, as many below 0 as above.

    Attributes:
        clips_gradient: Whether values beyond the outermost level get no gradient.
    """

    __slots__ = ()

    clips_gradient: ClassVar[bool]

    @override
    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = symmetric_scale(torch.maximum(-low, high).clamp(min=0.0), self.scheme.qmax)
        return scale, torch.zeros_like(scale)

    @abstractmethod
    def levels(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return the whole numbers that stand for ``x``, as floats; the scale broadcasts against it."""

    @override
    def integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return self.levels(x.float(), scale)

    @override
    def fake(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, *, is_within: bool = False) -> Tensor:
        bound = scale * self.scheme.qmax if self.clips_gradient and not is_within else None
        return straight_through(x, self.levels(x.detach().float(), scale), scale, bound)


def check_granularity(granularity: str) -> None:
    """Refuse what is neither ``"tensor"`` nor ``"channel"``.

    Raises:
        ValueError: If it is not.
    """
    if granularity not in ("tensor", "channel"):
        raise ValueError(f"granularity must be 'tensor' or 'channel', got {granularity!r}")
