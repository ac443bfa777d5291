"""Interface of mixings: what the samples of a batch and their labels become."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, final

from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class Blend:
    """How the samples of one batch are combined, each with a partner of the same batch.

    Args:
        weight: Share of a sample's own label, in ``[0, 1]``; the rest is its partner's.
        combine: Makes the new samples of the samples and of their partners, both ``[B, ...]``.
    """

    weight: float
    combine: Callable[[Tensor, Tensor], Tensor]


class Mixing(ABC):
    """Mixing: what the samples of a batch and their labels become.

    Attributes:
        needs_float_labels: Whether labels must be given to the training step as probabilities.
        mixes_masks: Whether it has a meaning for a label of each pixel, ``[B, H, W]``.
    """

    needs_float_labels: ClassVar[bool] = False
    mixes_masks: ClassVar[bool] = True

    @abstractmethod
    def draw(self, random: Random, inputs: Sequence[Tensor]) -> Blend | None:
        """Draw how the samples of a batch are combined; ``None`` leaves them alone.

        Args:
            random: What to draw from.
            inputs: Each input that is to be combined, ``[B, ...]``.

        Raises:
            SampleError: If the inputs cannot be combined so.
        """

    @abstractmethod
    def soften(self, labels: Tensor) -> Tensor:
        """Return what labels become before they are combined, where they are given as probabilities.

        Args:
            labels: ``[B, C, ...]``.
        """
