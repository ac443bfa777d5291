"""Elastic heads: an attention keeps the first of the heads that it was built with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.groups import groups_within, slice_group
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.select import Targets

if TYPE_CHECKING:
    from lightning_optim.graph.coupling import Group


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticHeads(SearchDimension):
    """Elastic attention heads: an attention keeps its first heads (Chen et al., 2021; arXiv:2107.00651, section 3.2).

    Whole heads go: their rows of query, key and value and the columns of the output projection that read them. The
    width of a head and the width of the output stay, and attributes that count heads follow. Heads are found in the
    graph, whatever the attention's class; where several queries share a key, they go together. PyTorch's own
    ``nn.MultiheadAttention`` becomes one with fewer heads in the extracted network.

    Args:
        targets: Attentions, or modules around them; each attention inside is a decision.
        heads: Numbers of heads to choose from, ascending, each at least 1; an attention takes those that are smaller
            than its own, and its own. ``None`` is every number from 1 on.

    Raises:
        ValueError: If the numbers do not ascend from at least 1.

    Example:
        >>> ElasticHeads(targets=Targets(include=["net.layers.*"]), heads=[2, 4, 8]).counts(6)
        (2, 4, 6)
    """

    adds_modules: ClassVar[bool] = False
    slices_weights: ClassVar[bool] = True

    targets: Targets
    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.heads is not None:
            object.__setattr__(self, "heads", tuple(self.heads))
            rises = all(low < high for low, high in itertools.pairwise(self.heads))
            if not self.heads or not rises or self.heads[0] < 1:
                raise ValueError(f"heads must ascend from at least 1, got {list(self.heads)}")

    def counts(self, own: int) -> tuple[int, ...]:
        """Numbers of heads that an attention may have, the last of them its own."""
        heads = range(1, own) if self.heads is None else self.heads
        return (*(count for count in heads if count < own), own)

    @override
    def attach(self, site: Site) -> list[Decision]:
        from lightning_optim.graph.heads import attention_heads  # beside the coupling, which takes a second to import

        groups = groups_within(site, self.targets, attention_heads, "attention heads")
        varying = [group for group in groups if len(self.counts(group.size)) > 1]
        if not varying:
            most = max(group.size for group in groups)
            raise TargetError(
                f"no attention has more than {most} heads, got heads of {self.heads}: give smaller numbers"
            )
        return [slice_group(site, group, _name(site, group), self.counts(group.size)) for group in varying]


def _name(site: Site, group: Group) -> str:
    parts = zip(*(site.outer_name(member.name).split(".") for member in group.members), strict=False)
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, parts)
    return f"{'.'.join(names[0] for names in shared)}:heads"
