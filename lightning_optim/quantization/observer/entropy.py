"""Entropy observer: the range that loses the least information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.observer.base import Observer, ObserverInput
from lightning_optim.quantization.observer.functional import entropy_threshold
from lightning_optim.quantization.observer.running_histogram import RunningHistogram, check_decay
from lightning_optim.quantization.quantizer.base import Quantizer


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Entropy(Observer):
    """Clip where the distribution of the rounded magnitudes tells most of the original one: KL divergence.

    See Migacz, "8-bit inference with TensorRT" (GTC 2017, slides 38-39), and
    ``lightning_optim.quantization.observer.functional.entropy_threshold``. A tensor with values of both signs has half
    of the integers for its magnitudes, one of a single sign all of them if its quantizer has a zero point.

    Args:
        stride: Every how many of the 2,048 bins of magnitudes to try clipping, at least 1; the slides try each.
        decay: Weight of the past at every batch, in ``(0, 1]``; 1 counts every batch alike.

    Example:
        >>> from lightning_optim.quantization import Affine
        >>> from lightning_optim.quantization.simulation.ranges import Ranges
        >>> ranges = Ranges(Affine(bits=4), Entropy())
        >>> _ = ranges.observe("x", torch.cat([torch.linspace(0.0, 1.0, 9999) ** 4, torch.tensor([10.0])]))
        >>> ranges.register(ranges.new_keys)
        >>> ranges.merge(ranges.message())
        >>> ranges.range_of("x")[1] < 2.0
        True
    """

    needs: ClassVar[ObserverInput] = ObserverInput.HISTOGRAM

    stride: int = 8
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        check_decay(self.decay)

    @override
    def start(self) -> RunningHistogram:
        return RunningHistogram(self._clip, self.decay)

    def _clip(self, seen: RunningHistogram, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        scheme = quantizer.scheme
        has_one_sign = (seen.low >= 0) | (seen.high <= 0)
        gets_all = torch.zeros_like(has_one_sign) if scheme.symmetric else has_one_sign
        num_integers = scheme.qmax - scheme.qmin + 1
        threshold = entropy_threshold(seen.counts, seen.exponent, gets_all, num_integers, self.stride)
        return torch.maximum(seen.low, -threshold), torch.minimum(seen.high, threshold)
