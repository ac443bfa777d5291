"""Elastic width: a layer keeps the first of the channels that it was built with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.groups import attach_widths
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.layer_kinds import LAYERS
from lightning_optim.surgery.select import Targets


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticWidth(SearchDimension):
    """Elastic width: each target keeps its first ``k`` output channels (Yu et al., 2019; arXiv:1812.08928, section 3).

    Whatever is coupled to them (norms, the next layer's inputs, the other side of a residual sum) follows;
    targets that are coupled to each other are one decision.

    Args:
        targets: Convolutions and linear layers.
        fractions: Shares of the channels to choose from, in ``(0, 1]``, ascending; the last is 1.
        divisor: Channel counts are rounded to a multiple of it, as far as the layer has that many; at least 1.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> ElasticWidth(targets=Targets(), fractions=(0.25, 1.0)).counts(64)
        (16, 64)
    """

    adds_modules: ClassVar[bool] = False
    slices_weights: ClassVar[bool] = True

    targets: Targets
    fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
    divisor: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", tuple(float(fraction) for fraction in self.fractions))
        rises = all(low < high for low, high in itertools.pairwise(self.fractions))
        if not self.fractions or not rises or self.fractions[0] <= 0.0 or self.fractions[-1] != 1.0:
            raise ValueError(f"fractions must ascend within (0, 1] and end with 1, got {list(self.fractions)}")
        if self.divisor < 1:
            raise ValueError(f"divisor must be at least 1, got {self.divisor}")

    def counts(self, size: int) -> tuple[int, ...]:
        """Channel counts that a layer of ``size`` channels may have; equal counts are merged."""
        rounded = (max(1, round(fraction * size / self.divisor)) * self.divisor for fraction in self.fractions[:-1])
        return (*sorted({count for count in rounded if count < size}), size)

    @override
    def attach(self, site: Site) -> list[Decision]:
        chosen = self.targets.select(site.root, LAYERS)
        groups = {name: site.coupling.group_of(site.inner_name(f"{name}.weight")) for name in chosen}
        return attach_widths(site, groups, "width", self.counts)
