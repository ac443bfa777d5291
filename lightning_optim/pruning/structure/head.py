"""Attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.errors import TargetError
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.graph.heads import attention_heads
from lightning_optim.pruning.structure.base import Shrink
from lightning_optim.pruning.structure.coupled import CoupledStructure, check_shrink, targeted_groups


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Head(CoupledStructure):
    """Whole attention heads fall, and can be physically removed (Michel et al., 2019; arXiv:1905.10650).

    The rows of query, key and value that make a head go with the columns of the output projection that read it;
    where several queries share a key, they go together. Other channels are left alone. A head's score is the mean over
    the targeted layers that make it, each first scaled to a mean of one. One head of each attention stays.

    Args:
        shrink: ``"update"`` removes heads at each pruning step, ``"end"`` when the schedule's final sparsity is
            reached, ``"never"`` only masks.

    Raises:
        ValueError: If ``shrink`` is none of these.
    """

    shrink: Shrink = "update"

    def __post_init__(self) -> None:
        check_shrink(self.shrink)

    @override
    def groups(self, coupling: Coupling | None, weights: Mapping[str, Tensor]) -> dict[str, Group]:
        groups = targeted_groups(coupling, weights)
        assert coupling is not None
        heads = {name: group for name, group in groups.items() if group in attention_heads(coupling)}
        if not heads:
            raise TargetError(
                f"none of the {len(weights)} targeted layers makes attention heads that can be removed: "
                "target the projections of query, key and value, or choose another structure"
            )
        return heads
