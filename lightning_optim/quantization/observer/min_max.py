"""Min-max observer: the widest range ever seen."""

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
class MinMaxState(RunningRange):
    """Running extremes."""

    __slots__ = ()

    @override
    def update(self, low: Tensor, high: Tensor, counts: Tensor | None = None) -> None:
        self._low = torch.minimum(self._low.to(low.device), low)
        self._high = torch.maximum(self._high.to(high.device), high)
