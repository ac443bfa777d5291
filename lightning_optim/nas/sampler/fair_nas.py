"""Strictly fair sampling: each option of a decision is trained equally often."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.sampler.base import Sampler, SamplerState
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.search.decision import Decision


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class FairNAS(Sampler):
    """Strictly fair sampling (FairNAS): rounds of paths in which each option comes once.

    By Chu et al. (2021; arXiv:1907.01845, section 3.2 and algorithm 1). Better ranks than uniform paths, at as many
    times the cost as there are paths in a step. Their gradients are averaged, where the paper adds them up, so that the
    learning rate keeps its meaning. Each decision draws a permutation of its options, runs through it, and draws the
    next: at any moment its options have been drawn equally often, up to one. A decision that is inactive in a path
    trains nothing there.

    Args:
        paths: Paths in one optimizer step, at least 1; ``None`` takes the number of options of the decision that has
            most, so that a step trains every option of all decisions.

    Raises:
        ValueError: If ``paths`` is below 1.

    Example:
        >>> FairNAS(paths=4)
        FairNAS(paths=4)
    """

    paths: int | None = None

    def __post_init__(self) -> None:
        if self.paths is not None and self.paths < 1:
            raise ValueError(f"paths must be at least 1, or None for a path for each option, got {self.paths}")

    @override
    def start(self, supernet: Supernet, seed: int) -> FairState:
        most = max(len(decision.options) for decision in supernet.decisions)
        return FairState(supernet, seed, most if self.paths is None else self.paths)


@final
class FairState(SamplerState):
    """Strictly fair sampling of one supernet."""

    def __init__(self, supernet: Supernet, seed: int, num_paths: int) -> None:
        self._space, self._seed, self._num_paths = supernet.space, seed, num_paths

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        first = step * self._num_paths
        drawn = (
            {decision.name: self._option(decision, number) for decision in self._space.decisions}
            for number in range(first, first + self._num_paths)
        )
        return tuple(Path(architecture=self._space.canonical(candidate)) for candidate in drawn)

    def _option(self, decision: Decision, number: int) -> int:
        """Option of the path of this number, counted from the beginning of the fit."""
        turn, place = divmod(number, len(decision.options))
        options = list(range(len(decision.options)))
        random.Random(f"{self._seed}/{decision.name}/{turn}").shuffle(options)
        return options[place]
