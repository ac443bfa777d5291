"""Weight structure (unstructured pruning)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.functional import spread


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Weight(Structure):
    """Unstructured pruning: each weight alone; the highest accuracy per zero, and no speed on dense hardware."""

    needs_coupling: ClassVar[bool] = False

    @override
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        return {name: spread(score, weights[name]) for name, score in scores.items()}

    @override
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        return dict(keep)

    @override
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(masks)
