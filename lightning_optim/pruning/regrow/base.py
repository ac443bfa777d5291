"""Interface of regrowth: which weights come back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Regrowth(ABC):
    """Regrowth: at each jump of the window the smallest weights give way to others, at the same sparsity."""

    needs_gradient: ClassVar[bool]

    @property
    @abstractmethod
    def fraction(self) -> float:
        """Share of the weights left that is replaced at the window's first jump, in ``(0, 1)``."""

    @abstractmethod
    def growth_score(self, weight: Tensor, gradient: Tensor | None, seed: int) -> Tensor:
        """How much every weight is wanted back; shaped as the weight, higher comes back first.

        Args:
            weight: The weight, zero where it is masked.
            gradient: Its dense gradient, masked weights included; ``None`` unless ``needs_gradient``.
            seed: Differs from step to step and from weight to weight.
        """


def decayed(fraction: float, progress: float) -> float:
    """The share replaced at ``progress``, in ``[0, 1]``, of the window: ``fraction / 2 * (1 + cos(pi * progress))``.

    Evci et al., 2020; arXiv:1911.11134, section 3 (2), with the window's end as ``T_end``.

    Example:
        >>> [round(decayed(0.3, progress), 3) for progress in (0.0, 0.5, 1.0)]
        [0.3, 0.15, 0.0]
    """
    return fraction / 2.0 * (1.0 + math.cos(math.pi * progress))


def check_fraction(fraction: float) -> None:
    """Refuse a share of weights outside ``(0, 1)``.

    Raises:
        ValueError: If it is.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
