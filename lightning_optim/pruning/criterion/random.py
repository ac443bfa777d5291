"""Random criterion: the baseline that every criterion must beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, Need


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Random(Criterion):
    """Random criterion: scores drawn uniformly from ``[0, 1)``.

    They are a function of the seed, the layer's name and its shape alone: the same on all ranks, at each pruning step
    and in a resumed run, and no other random number changes.

    Args:
        seed: Any integer, at least 0.

    Raises:
        ValueError: If ``seed`` is below 0.

    Example:
        >>> seen = LayerEvidence(name="conv.weight", weight=torch.zeros(2, 3))
        >>> torch.equal(Random(seed=1)(seen), Random(seed=1)(seen))
        True
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return frozenset({Evidence.WEIGHT})

    @override
    def __call__(self, seen: LayerEvidence) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {seen.name}".encode()))
        return torch.rand(seen.weight.shape, generator=generator).to(seen.weight.device)
