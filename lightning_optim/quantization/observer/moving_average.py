"""Moving-average observer: the range of recent batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.quantization.observer.base import Observer
from lightning_optim.quantization.observer.running_range import RunningRange


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class MovingAverage(Observer):
    """Average the ranges of batches, older ones less (Jacob et al., 2018; arXiv:1712.05877, section 3.1).

    Args:
        decay: Weight of the past at every batch, in ``[0, 1)``. The first batch counts in full.

    Example:
        >>> state = MovingAverage(decay=0.5).start()
        >>> state.grow(1)
        >>> state.update(torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> state.update(torch.tensor([0.0]), torch.tensor([3.0]))
        >>> state.low.item(), state.high.item()
        (-0.5, 2.5)
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    @override
    def start(self) -> MovingAverageState:
        return MovingAverageState(self.decay)


@final
class MovingAverageState(RunningRange):
    """Running averages of both ends."""

    __slots__ = ("_decay",)

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay

    @override
    def update(self, low: Tensor, high: Tensor, counts: Tensor | None = None) -> None:
        past, now = torch.stack([self._low, self._high]).to(low.device), torch.stack([low, high])
        blended = past + (1.0 - self._decay) * (now - past)
        self._low, self._high = torch.where(now.isinf(), past, torch.where(past.isinf(), now, blended))
