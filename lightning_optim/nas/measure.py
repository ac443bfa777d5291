"""Measure of an architecture: a metric that validation logs, or what its network costs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.cost.base import Cost
from lightning_optim.cost.macs import MACs


class Measure(ABC):
    """Measure of an architecture: a number with a direction, and possibly a bound."""

    @abstractmethod
    def gain(self, value: float) -> float:
        """The value with the sign that makes higher better."""

    @abstractmethod
    def allows(self, value: float) -> bool:
        """Whether a value is within the bound; NaN is within none."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What is measured, for people to read."""

    @abstractmethod
    def describe(self) -> str:
        """What is measured and its bound, in a few words."""


def say_number(value: float) -> str:
    """Write a metric or a cost: thousands apart, small ones with four digits.

    Example:
        >>> say_number(1_500_000.0), say_number(0.98765)
        ('1,500,000', '0.9877')
    """
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedMetric(Measure):
    """Logged metric: what the module's validation logs under a key.

    Args:
        monitor: The key.
        mode: Whether the highest (``"max"``) or the lowest (``"min"``) is best.
        bound: The lowest value allowed with ``"max"``, the highest with ``"min"``; ``None`` allows all. An
            architecture beyond it has been evaluated by then, and counts; it is never picked.

    Raises:
        ValueError: If the mode is another.

    Example:
        >>> LoggedMetric(monitor="val/loss", mode="min", bound=0.5).allows(0.6)
        False
    """

    monitor: str = "val/accuracy"
    mode: Literal["min", "max"] = "max"
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")

    @override
    def gain(self, value: float) -> float:
        return value if self.mode == "max" else -value

    @override
    def allows(self, value: float) -> bool:
        return self.bound is None or self.gain(value) >= self.gain(self.bound)

    @property
    @override
    def title(self) -> str:
        return self.monitor

    @override
    def describe(self) -> str:
        sign = "at least" if self.mode == "max" else "at most"
        return self.title if self.bound is None else f"{self.title} {sign} {say_number(self.bound)}"


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCost(Measure):
    """Cost of the extracted network; lower is better.

    Args:
        cost: What is counted or measured. MACs are those of one sample; any other cost measures the extracted network
            on the CPU, called on the example. It is a dataclass, told from others by its ``repr``.
        bound: Highest value allowed; ``None`` allows all. An architecture beyond it is not evaluated and does not
            count.

    Raises:
        ValueError: If the bound is not positive.

    Example:
        >>> NetworkCost(bound=1e6).describe()
        'MACs at most 1,000,000'
    """

    cost: Cost = field(default_factory=MACs)
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"the bound of a cost must be positive, or None for no bound, got {self.bound}")

    @override
    def gain(self, value: float) -> float:
        return -value

    @override
    def allows(self, value: float) -> bool:
        return self.bound is None or (value <= self.bound and not math.isnan(value))

    @property
    @override
    def title(self) -> str:
        return type(self.cost).__name__

    @override
    def describe(self) -> str:
        return self.title if self.bound is None else f"{self.title} at most {say_number(self.bound)}"
