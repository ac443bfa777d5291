"""State of observers that keep one running value for each end of a range."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.quantization.observer.base import ObserverState


class RunningRange(ObserverState):
    """Holds both ends; how a batch changes them is left open."""

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
        if not more:
            return
        self._low = torch.cat([self._low, self._low.new_full((more,), math.inf)])
        self._high = torch.cat([self._high, self._high.new_full((more,), -math.inf)])

    @override
    def reset(self, places: Sequence[int]) -> None:
        chosen = list(places)
        self._low, self._high = self._low.clone(), self._high.clone()
        self._low[chosen], self._high[chosen] = math.inf, -math.inf

    @abstractmethod
    @override
    def update(self, low: Tensor, high: Tensor, counts: Tensor | None = None) -> None: ...

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {"low": self._low.clone(), "high": self._high.clone()}

    @override
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._low, self._high = state["low"].clone(), state["high"].clone()
