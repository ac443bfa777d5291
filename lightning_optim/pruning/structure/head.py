"""Attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.graph.heads import attention_heads
from lightning_optim.pruning.structure.base import Shrink, Structure
from lightning_optim.pruning.structure.channel import channel_masks, channel_scores, round_up, targeted_groups


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Head(Structure):
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

    needs_coupling: ClassVar[bool] = True

    shrink: Shrink = "update"

    def __post_init__(self) -> None:
        if self.shrink not in ("never", "end", "update"):
            raise ValueError(f"shrink must be 'never', 'end' or 'update', got {self.shrink!r}")

    @property
    @override
    def highest_sparsity(self) -> float:
        return 1.0

    @override
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        return {name: channel_scores(group, scores) for name, group in _targeted_heads(coupling, weights).items()}

    @override
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        losing = {name: heads for name, heads in keep.items() if not heads.all()}
        if not losing:
            return {}
        return channel_masks(_targeted_heads(coupling, {name: weights[name] for name in losing}), losing, weights)

    @override
    def settle(self, keep: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: round_up(mask, scores[name], multiple=1) for name, mask in keep.items()}

    @override
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ShrinkError("heads are coupled over layers: they cannot be read off a rank's part of the weights")


def _targeted_heads(coupling: Coupling | None, weights: Mapping[str, Tensor]) -> dict[str, Group]:
    groups = targeted_groups(coupling, weights)
    assert coupling is not None
    heads = {name: group for name, group in groups.items() if group in attention_heads(coupling)}
    if not heads:
        raise TargetError(
            f"none of the {len(weights)} targeted layers makes attention heads that can be removed: "
            "target the projections of query, key and value, or choose another structure"
        )
    return heads
