"""Screening: a cheap first filter of proposals, by a score that needs no training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from lightning_optim.checked import checked
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.supernet import Supernet
from lightning_optim.nas.zero_cost.base import ZeroCostScore
from lightning_optim.nas.zero_cost.synflow import SynFlow
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.select import submodule


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """Screening: of several proposals, the one with the best zero-cost score is evaluated.

    The others are told to the strategy as not allowed; they count as no evaluation, and are not proposed again. The
    user's own network and the cheapest ones are evaluated in any case.

    Args:
        score: Ranks untrained networks. A high score is no high accuracy: it mostly tells poor networks from others.
        candidates: Proposals of which one is evaluated, at least 2.

    Raises:
        ValueError: If there are fewer.
    """

    score: ZeroCostScore = field(default_factory=SynFlow)
    candidates: int = 4

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, got {self.candidates}")

    def measure(self, supernet: Supernet, architecture: Architecture) -> float:
        """Score the network of an architecture."""
        site = supernet.site
        network = submodule(supernet.extract(architecture), site.network)
        return self.score.measure(network, Inputs(tuple(site.args), dict(site.kwargs)), site.seed)
