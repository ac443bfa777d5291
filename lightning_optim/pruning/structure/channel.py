"""Channel structure: whole channels, with everything that is coupled to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.pruning.structure.base import Shrink
from lightning_optim.pruning.structure.coupled import CoupledStructure, check_shrink, targeted_groups


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Channel(CoupledStructure):
    """Channel structure: output channels fall with every weight that makes or reads them, and can be removed.

    A channel's score is the mean over the targeted layers of its group, each layer first scaled to a mean of one:
    layers of other fan-in or scale are then comparable.

    Masked means gone: a layer norm, a group norm and whatever else takes a statistic over channels leaves masked ones
    out, so that what is trained and validated is what is kept after the cut. Channels over which the network's own code
    takes one, outside of any layer, cannot be masked so; they stay, with a warning, unless they are removed at once.

    Args:
        shrink: ``"update"`` removes channels at each pruning step, ``"end"`` when the schedule's final sparsity is
            reached, ``"never"`` only masks.
        multiple: Keep a multiple of so many channels, at least 1; 16 suits CPU convolutions.

    Raises:
        ValueError: If a value is out of range.
    """

    shrink: Shrink = "update"
    multiple: int = 1

    def __post_init__(self) -> None:
        check_shrink(self.shrink)
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}")

    @property
    @override
    def kept_multiple(self) -> int:
        return self.multiple

    @property
    @override
    def channel_multiple(self) -> int | None:
        return self.multiple

    @override
    def groups(self, coupling: Coupling | None, weights: Mapping[str, Tensor]) -> dict[str, Group]:
        return targeted_groups(coupling, weights)
