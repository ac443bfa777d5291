"""How important a weight or a channel is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from lightning_optim.pruning.evidence import Evidence, Seen


class Criterion(ABC):
    """Scores the weights of one layer from the evidence it asks for."""

    needs: ClassVar[frozenset[Evidence]]

    @abstractmethod
    def __call__(self, seen: Seen) -> Tensor:
        """Return importances, higher is kept: shaped as the weight, or ``[channels]``, one per output channel."""
