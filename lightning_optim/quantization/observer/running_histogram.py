"""State of observers that count values in bins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.observer.functional import NUM_BINS, exponent_of, widen_bins
from lightning_optim.quantization.observer.running_range import RunningRange
from lightning_optim.quantization.quantizer.base import Quantizer

Clip = Callable[["RunningHistogram", Quantizer], tuple[Tensor, Tensor]]
"""Reads the ranges to cover off the histograms, ``[N]`` each."""


def check_decay(decay: float) -> None:
    """Refuse a weight of the past that is none.

    Raises:
        ValueError: Saying so.
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay must be in (0, 1], got {decay}; 1 counts every batch alike")


@final
class RunningHistogram(RunningRange):
    """Histograms and extremes of all batches.

    Args:
        clip: Reads ranges off the histograms.
        decay: Weight of the past at every batch that shows a tensor, in ``(0, 1]``.

    Attributes:
        counts: ``[N, B]``, over the spans that follow from the extremes.
    """

    __slots__ = ("_clip", "_decay", "counts")

    def __init__(self, clip: Clip, decay: float) -> None:
        super().__init__()
        self._clip, self._decay = clip, decay
        self.counts = torch.empty(0, NUM_BINS, dtype=torch.float64)

    @property
    def exponent(self) -> Tensor:
        """Spans of the histograms, ``[N]``."""
        return exponent_of(self.low, self.high)

    @override
    def clipped(self, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        low, high = self._clip(self, quantizer)
        seen = self.low.isfinite()
        return (
            torch.where(seen, torch.maximum(low.to(self.low.dtype), self.low), self.low),
            torch.where(seen, torch.minimum(high.to(self.high.dtype), self.high), self.high),
        )

    @override
    def grow(self, count: int) -> None:
        more = self.counts.new_zeros(count - len(self.counts), NUM_BINS)
        super().grow(count)
        self.counts = torch.cat([self.counts, more])

    @override
    def reset(self, places: Sequence[int]) -> None:
        super().reset(places)
        self.counts = self.counts.clone()
        self.counts[list(places)] = 0.0

    @override
    def update(self, low: Tensor, high: Tensor, counts: Tensor | None = None) -> None:
        assert counts is not None
        past, past_exponent = self.counts.to(low.device), self.exponent.to(low.device)
        self._low = torch.minimum(self._low.to(low.device), low)
        self._high = torch.maximum(self._high.to(high.device), high)
        past = widen_bins(past, past_exponent, self.exponent)
        weight = torch.where(low.isfinite(), self._decay, 1.0).to(past.dtype).unsqueeze(1)
        self.counts = past * weight + widen_bins(counts.to(past.dtype), exponent_of(low, high), self.exponent)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "counts": self.counts.clone()}

    @override
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.counts = state["counts"].clone()
