"""Percentile observer: the range of most values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.observer.base import Observer, ObserverInput
from lightning_optim.quantization.observer.functional import percentile_range
from lightning_optim.quantization.observer.running_histogram import RunningHistogram, check_decay
from lightning_optim.quantization.quantizer.base import Quantizer


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Percentile(Observer):
    """Leave the outermost values of a tensor out (McKinstry et al., 2018; arXiv:1809.04191, section 3.2).

    Args:
        percentile: Share of values to keep, in ``(0, 100]``; what goes is taken from both ends alike.
        decay: Weight of the past at every batch, in ``(0, 1]``; 1 counts every batch alike.

    Example:
        >>> import torch
        >>> from lightning_optim.quantization import Affine
        >>> from lightning_optim.quantization.simulation.ranges import Ranges
        >>> ranges = Ranges(Affine(), Percentile(percentile=98.0))
        >>> _ = ranges.observe("x", torch.arange(1000.0))
        >>> ranges.register(ranges.new_keys)
        >>> ranges.merge(ranges.message())
        >>> [round(end) for end in ranges.range_of("x")]
        [10, 990]
    """

    needs: ClassVar[ObserverInput] = ObserverInput.HISTOGRAM

    percentile: float = 99.99
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile must be in (0, 100], got {self.percentile}")
        check_decay(self.decay)

    @override
    def start(self) -> RunningHistogram:
        return RunningHistogram(self._clip, self.decay)

    def _clip(self, seen: RunningHistogram, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        return percentile_range(seen.counts, seen.exponent, self.percentile)
