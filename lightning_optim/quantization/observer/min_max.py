"""The widest range ever seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.observer.base import Observer, ObserverState


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MinMax(Observer):
    """Keep the smallest and the largest value of all batches. One outlier widens the range for good.

    Example:
        >>> state = MinMax().start()
        >>> state.grow(1)
        >>> state.update(torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> state.update(torch.tensor([0.0]), torch.tensor([3.0]))
        >>> state.low.item(), state.high.item()
        (-1.0, 3.0)
    """

    @override
    def start(self) -> MinMaxState:
        return MinMaxState()


@final
class MinMaxState(ObserverState):
    """Running extremes."""

    __slots__ = ("_high", "_low")

    def __init__(self) -> None:
        self._low, self._high = torch.empty(0), torch.empty(0)

    @property
    @override
    def low(self) -> Tensor:
        return self._low

    @property
    @override
    def high(self) -> Tensor:
        return self._high

    @override
    def grow(self, count: int) -> None:
        more = count - self._low.numel()
        self._low = torch.cat([self._low, self._low.new_full((more,), math.inf)])
        self._high = torch.cat([self._high, self._high.new_full((more,), -math.inf)])

    @override
    def update(self, low: Tensor, high: Tensor) -> None:
        self._low = torch.minimum(self._low.to(low.device), low)
        self._high = torch.maximum(self._high.to(high.device), high)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {"low": self._low.clone(), "high": self._high.clone()}

    @override
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._low, self._high = state["low"].clone(), state["high"].clone()
