"""Path of a supernet in a training step: an option for each decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.forward.mixture import Mixture


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Path of a training step.

    Args:
        architecture: The option of each decision.
        mixtures: By decision, several options at once in place of that one.
    """

    architecture: Architecture
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)

    def options(self, decision: str) -> tuple[int, ...]:
        """Which options of a decision run.

        Example:
            >>> Path(architecture={"mix": 1}).options("mix")
            (1,)
        """
        mixture = self.mixtures.get(decision)
        return (self.architecture[decision],) if mixture is None else tuple(mixture.weights)
