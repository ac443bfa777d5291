"""Interface of criteria: how important a weight or a channel is."""

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_optim.pruning.evidence import LayerEvidence, Need


class Criterion(ABC):
    """Criterion: scores the weights of one layer from the evidence that it asks for."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """The evidence it asks for: what is at hand by its kind, what must be gathered by its statistic."""

    @abstractmethod
    def __call__(self, seen: LayerEvidence) -> Tensor:
        """Return importances, higher is kept: shaped as the weight, or ``[channels]``, one per output channel.

        Raises:
            ValueError: If it cannot score this layer.
        """
