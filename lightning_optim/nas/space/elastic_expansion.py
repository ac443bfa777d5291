"""Elastic expansion: the hidden layer of an inverted bottleneck or of an MLP is a smaller multiple of its input."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.groups import groups_within, slice_group
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.layer_kinds import LAYERS, outputs_first
from lightning_optim.surgery.select import Targets, named_modules
from lightning_optim.surgery.torch_private import Convolution

if TYPE_CHECKING:
    from lightning_optim.graph.coupling import Coupling, Group


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticExpansion(SearchDimension):
    """Elastic expansion: the hidden width of a block, as a multiple of its input (Cai et al., 2020; arXiv:1908.09791).

    The hidden channels are those that one layer of the block makes and another one reads, and that are nowhere outside:
    of an inverted bottleneck, an MLP or a gated one, with all that is coupled to them, as depthwise convolutions,
    norms and squeeze-and-excitation. The first channels stay. It is ``ElasticWidth`` for who knows the blocks and
    ratios, not the layers.

    Args:
        targets: Blocks; each hidden width inside is a decision, named after the layer that makes it. Of several blocks
            together, the stream between them is inside too.
        ratios: Hidden channels for each channel that the layer reads, ascending, above 0; a block takes those that are
            below its own, and its own.
        divisor: Channel counts are rounded to a multiple of it; at least 1.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> ElasticExpansion(targets=Targets(), ratios=[3, 4, 6]).counts(size=96, width=16)
        (48, 64, 96)
    """

    adds_modules: ClassVar[bool] = False
    slices_weights: ClassVar[bool] = True

    targets: Targets
    ratios: Sequence[float] = (1, 2, 3, 4, 6)
    divisor: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(float(ratio) for ratio in self.ratios))
        rises = all(low < high for low, high in itertools.pairwise(self.ratios))
        if not self.ratios or not rises or self.ratios[0] <= 0.0:
            raise ValueError(f"ratios must ascend from above 0, got {list(self.ratios)}")
        if self.divisor < 1:
            raise ValueError(f"divisor must be at least 1, got {self.divisor}")

    def counts(self, size: int, width: int) -> tuple[int, ...]:
        """Hidden channels that a block of ``size`` of them may have, whose layer reads ``width`` channels."""
        rounded = (max(1, round(ratio * width / self.divisor)) * self.divisor for ratio in self.ratios)
        return (*sorted({count for count in rounded if count < size}), size)

    @override
    def attach(self, site: Site) -> list[Decision]:
        layers = {name: module for name, module in named_modules(site.root).items() if isinstance(module, LAYERS)}
        groups = groups_within(site, self.targets, _hidden, "a hidden layer")
        makers = [_maker(site, group, layers) for group in groups]
        planned = [(group, *maker, self.counts(group.size, maker[1]))
                   for group, maker in zip(groups, makers, strict=True) if maker is not None]  # fmt: skip
        if not any(len(counts) > 1 for *_, counts in planned):
            found = ", ".join(f"{name!r} makes {group.size} of {width}" for group, name, width, _ in planned[:5])
            raise TargetError(f"ratios of {list(self.ratios)} make no hidden layer smaller: {found}; give smaller ones")
        return [slice_group(site, group, f"{name}:expansion", counts)
                for group, name, _, counts in planned if len(counts) > 1]  # fmt: skip


def _hidden(coupling: Coupling) -> list[Group]:
    """Channels that a weight makes one by one, and another one reads."""
    return [
        group
        for group in coupling.groups
        if any(member.role == 0 and member.index.shape[1] == 1 for member in group.members)
        and any(member.role == 1 for member in group.members)
    ]


def _maker(site: Site, group: Group, layers: Mapping[str, nn.Module]) -> tuple[str, int] | None:
    """Name of the first layer that makes hidden channels, and how many it reads; ``None`` if no layer does."""
    for member in group.members:
        name, _, tensor = site.outer_name(member.name).rpartition(".")
        layer = layers.get(name)
        is_grouped = isinstance(layer, Convolution) and layer.groups > 1
        if tensor == "weight" and layer is not None and member.role == 0 and not is_grouped:
            return name, int(outputs_first(layer, vars(layer)["_parameters"]["weight"]).shape[1])
    return None
