"""How a sparsity is spread over layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, distributed


class Allocation(ABC):
    """Decides how many entries each pool of scores loses, and so which."""

    @abstractmethod
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, group: distributed.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """Mark what is dropped with ``False``.

        Args:
            scores: Importance of every entry of every pool (a layer's weights, a group's channels); ``-inf`` for what
                has gone already, ``inf`` for what must stay.
            sparsity: Fraction of all entries that shall be gone, in ``[0, 1)``.
            group: Process group over which each pool is sharded; ``None`` if each rank sees all of it.

        Returns:
            Boolean masks, shaped as the scores.
        """
