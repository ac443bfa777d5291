"""Elastic embedding: a transformer keeps the first channels of the stream that all of its layers add to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.space.elastic_width import ElasticWidth
from lightning_optim.nas.space.groups import attach_widths
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.layer_kinds import LAYERS
from lightning_optim.surgery.select import Targets


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticEmbedding(SearchDimension):
    """Elastic embedding width of a transformer (Chen et al., 2021; arXiv:2107.00651, section 3.2).

    Embeddings keep their first channels. All that is added to the same stream follows: positions, class tokens, norms,
    what every attention and every MLP reads and writes. Heads keep their number and their width.

    Args:
        targets: What makes the stream: an ``nn.Embedding``, or the layer that embeds patches or features.
            Those that add to one stream are one decision, named after the first of them.
        fractions: Shares of the channels to choose from, in ``(0, 1]``, ascending; the last is 1.
        divisor: Channel counts are rounded to a multiple of it, as far as there are that many; at least 1.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> ElasticEmbedding(targets=Targets(include=["net.embed"]), fractions=(0.5, 1.0)).counts(192)
        (96, 192)
    """

    adds_modules: ClassVar[bool] = False
    slices_weights: ClassVar[bool] = True

    targets: Targets
    fractions: Sequence[float] = (0.5, 0.75, 1.0)
    divisor: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", self._width.fractions)

    def counts(self, size: int) -> tuple[int, ...]:
        """Widths that a stream of ``size`` channels may have; equal ones are merged."""
        return self._width.counts(size)

    @property
    def _width(self) -> ElasticWidth:
        return ElasticWidth(targets=self.targets, fractions=self.fractions, divisor=self.divisor)

    @override
    def attach(self, site: Site) -> list[Decision]:
        chosen = self.targets.select(site.root, (nn.Embedding, *LAYERS))
        roles = {name: int(isinstance(module, nn.Embedding)) for name, module in chosen.items()}
        groups = {name: site.coupling.group_of(site.inner_name(f"{name}.weight"), role) for name, role in roles.items()}
        return attach_widths(site, groups, "embedding", self.counts)
