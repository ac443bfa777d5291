"""Attention-head structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.graph.heads import attention_heads
from lightning_optim.pruning.structure.base import Shrink
from lightning_optim.pruning.structure.coupled import CoupledStructure, check_shrink


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Head(CoupledStructure):
    """Attention-head structure: whole heads, which can be physically removed (Michel et al., 2019; arXiv:1905.10650).

    The rows of query, key and value that make a head go with the columns of the output projection that read it;
    where several queries share a key, they go together. Other channels are left alone. A head's score is the mean over
    the targeted layers that make or read it, each first scaled to a mean of one. One head of each attention stays.
    ``nn.MultiheadAttention`` has no layers that make its heads: they are targeted, and scored, by its ``out_proj``.

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
        if coupling is None:
            raise ShrinkError("heads need the network's coupling, which is not known yet")
        heads: dict[str, Group] = {}
        found = attention_heads(coupling)
        for name in weights:
            group = _heads_of(name, coupling, found)
            if group is not None and not any(group is known for known in heads.values()):
                heads[name] = group
        if not heads:
            raise TargetError(
                f"none of the {len(weights)} targeted layers makes attention heads that can be removed: "
                "target the projections of query, key and value, or choose another structure"
            )
        return heads

    @override
    def concerns(self, name: str, coupling: Coupling) -> bool:
        return _heads_of(name, coupling, attention_heads(coupling)) is not None


def _heads_of(name: str, coupling: Coupling, heads: tuple[Group, ...]) -> Group | None:
    """The heads that a weight makes; or those that it reads, if they are made by no layer."""
    made, read = coupling.group_of(name, 0), coupling.group_of(name, 1)
    if made is not None and made in heads:
        return made
    is_packed = read is not None and not any(m.role == 0 and m.name.endswith(".weight") for m in read.members)
    return read if is_packed and read in heads else None
