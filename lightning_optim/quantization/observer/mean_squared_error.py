"""MSE observer: the range that rounds and clips with the least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.observer.base import Observer, ObserverInput
from lightning_optim.quantization.observer.functional import least_squares_range
from lightning_optim.quantization.observer.running_histogram import RunningHistogram, check_decay
from lightning_optim.quantization.quantizer.base import Quantizer


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class MeanSquaredError(Observer):
    """Choose the part of a range with the least mean squared error (MSE) after rounding and clipping.

    See Banner et al., 2019 (arXiv:1810.05723, section 2) for the trade between the two errors; it is found here by
    trying, so that it holds for any distribution, width and quantizer.

    Args:
        num_steps: Parts of the range to try, at least 1.
        decay: Weight of the past at every batch, in ``(0, 1]``; 1 counts every batch alike.

    Example:
        >>> import torch
        >>> from lightning_optim.quantization import Affine
        >>> from lightning_optim.quantization.simulation.ranges import Ranges
        >>> ranges = Ranges(Affine(bits=2), MeanSquaredError(num_steps=10))
        >>> _ = ranges.observe("x", torch.cat([torch.rand(1000), torch.tensor([10.0])]))
        >>> ranges.register(ranges.new_keys)
        >>> ranges.merge(ranges.message())
        >>> ranges.range_of("x")[1] < 10.0
        True
    """

    needs: ClassVar[ObserverInput] = ObserverInput.HISTOGRAM

    num_steps: int = 100
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        check_decay(self.decay)

    @override
    def start(self) -> RunningHistogram:
        return RunningHistogram(self._clip, self.decay)

    def _clip(self, seen: RunningHistogram, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        def rounding(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
            return quantizer.fake(x, *quantizer.qparams(low, high))

        return least_squares_range(seen.counts, seen.exponent, seen.low, seen.high, rounding, self.num_steps)
