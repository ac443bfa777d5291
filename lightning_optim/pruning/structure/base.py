"""Interface of structures: what falls together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from torch import Tensor

from lightning_optim.graph.branches import Branch
from lightning_optim.graph.coupling import Coupling, Group

Shrink = Literal["never", "end", "update"]
TouchedDim = tuple[str, int | None]
"""A tensor's name and one of its dimensions, or ``None`` for all of them."""


class Structure(ABC):
    """Structure: turns scores of weights into pools of entries that fall one by one, and what is kept into masks."""

    needs_coupling: ClassVar[bool]

    @property
    def shrink(self) -> Shrink:
        """When masked channels are physically removed: ``"never"``, at the window's ``"end"``, at each ``"update"``."""
        return "never"

    @property
    def channel_multiple(self) -> int | None:
        """Number of which a multiple of channels is kept; ``None`` if whole channels cannot be counted and priced."""
        return None

    @property
    def highest_sparsity(self) -> float:
        """The sparsity at which nothing more can fall; 1 where there is no such limit."""
        return 1.0

    def concerns(self, name: str, coupling: Coupling) -> bool:
        """Whether anything of a targeted weight can fall, in a network whose coupling is known."""
        return coupling.group_of(name, 0) is not None

    def touched(self, weights: Mapping[str, Tensor], coupling: Coupling) -> set[TouchedDim]:
        """All tensors that pruning ``weights`` masks or cuts.

        A cut that leaves no mask behind needs one dimension for itself; a mask needs the whole tensor to stay.
        """
        return {(name, None) for name in weights}

    @abstractmethod
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        """Scores of everything that can fall, by pool; ``inf`` for what must stay.

        Args:
            weights: The targeted weights by name, all as ``[out, in, ...]``; zero where they have gone.
            scores: What the criterion said of each: shaped as the weight, or ``[channels]``.
            coupling: Coupled channels of the network; ``None`` unless ``needs_coupling``.
        """

    def competing(self, pools: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        """Names of the pools that compete as one, however the sparsity is spread; here each stands alone."""
        return tuple((pool,) for pool in pools)

    @abstractmethod
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        """Boolean masks over weights, ``False`` where they are to be zero.

        Args:
            keep: Boolean mask over the entries of each pool.
            weights: Every parameter of the network by name, weights as for ``pools``; the masks are shaped likewise.
            coupling: As for ``pools``.
        """

    def groups(self, coupling: Coupling | None, weights: Mapping[str, Tensor]) -> dict[str, Group]:
        """The groups that ``weights`` make and that can lose channels, by the name of their pool; none elsewhere."""
        return {}

    def gone_branches(self, keep: Mapping[str, Tensor], coupling: Coupling | None) -> list[Branch] | None:
        """The residual branches that are not kept; ``None`` for a structure that drops no branches."""
        return None

    def fitted(self, keep: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bend an allocation to what the structure allows, such as at least one channel."""
        return dict(keep)

    @abstractmethod
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is kept of each pool, read off the masks of this rank's part of the weights.

        Raises:
            ShrinkError: If the structure couples layers, which no rank sees all of.
        """
