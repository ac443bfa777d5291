"""Large weights matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, Seen
from lightning_optim.pruning.functional import magnitude


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude(Criterion):
    """Score a weight by ``|w| ** p`` (Han et al., 2015; arXiv:1506.02626).

    Args:
        p: Exponent, above 0; matters only where scores are summed over a channel.

    Raises:
        ValueError: If ``p`` is not above 0.
    """

    needs: ClassVar[frozenset[Evidence]] = frozenset({Evidence.WEIGHT})

    p: float = 1.0

    def __post_init__(self) -> None:
        if not self.p > 0.0:
            raise ValueError(f"p must be above 0, got {self.p}")

    @override
    def __call__(self, seen: Seen) -> Tensor:
        return magnitude(seen.weight.detach(), self.p)
