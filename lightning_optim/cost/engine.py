"""Engines that run a network when its latency is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.timing import time_call


class Engine(ABC):
    """Engine that times one forward pass of a network."""

    @abstractmethod
    def __call__(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """CPU seconds of one call in evaluation mode, on one thread.

        Args:
            network: The network, in evaluation mode; left untouched.
            args: Positional inputs, of the batch size that counts.
            kwargs: Keyword inputs.
        """


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Eager(Engine):
    """Eager PyTorch: the network is called as it is."""

    @override
    def __call__(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        return time_call(lambda: network(*args, **kwargs))
