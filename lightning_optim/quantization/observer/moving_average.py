"""Moving-average observer: the range of recent batches."""

from __future__ import annotations

from collections.abc import Sequence
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

    A tensor that comes about in several ways, since layers before it are skipped at times, has no average range: what
    all of its batches span is covered.

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

    __slots__ = ("_decay", "_united")

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay, self._united = decay, torch.empty(0, dtype=torch.bool)

    @override
    def grow(self, count: int) -> None:
        super().grow(count)
        self._united = torch.cat([self._united, self._united.new_zeros(count - len(self._united))])

    @override
    def unite(self, places: Sequence[int]) -> None:
        self._united = self._united.clone()
        self._united[list(places)] = True

    @override
    def update(self, low: Tensor, high: Tensor, counts: Tensor | None = None) -> None:
        past, now = torch.stack([self._low, self._high]).to(low.device), torch.stack([low, high])
        blended = past + (1.0 - self._decay) * (now - past)
        if self._united.any():  # which lies on the CPU
            union = torch.stack([torch.minimum(past[0], low), torch.maximum(past[1], high)])
            blended = torch.where(self._united.to(low.device), union, blended)
        self._low, self._high = torch.where(now.isinf(), past, torch.where(past.isinf(), now, blended))

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "united": self._united.clone()}

    @override
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._united = state["united"].clone()
