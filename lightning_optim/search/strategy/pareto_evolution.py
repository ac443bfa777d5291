"""Pareto evolution: a population along the front of several scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.pareto import by_front
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.search.strategy.history import PATIENCE, History, HistoryState


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoEvolution(Strategy):
    """Pareto evolution (NSGA-II: Deb et al., 2002; doi:10.1109/4235.996017, sections III-A to III-C), steady state.

    The population is the best of all candidates that have scores: those of the first fronts, and of the last of these
    the ones with most room around them (crowding distance). Two parents each win against a rival by the same order;
    half of the children take every decision from one of both, and all are mutated. Other than in the paper, each child
    can be a parent as soon as it has scores, nothing is proposed twice, and what is not allowed never enters. To take
    where evaluations are cheap; ``PairwiseSurrogate`` needs fewer. With one score it is an elitist evolution.

    Args:
        population: Size of the population, at least 2; as many random candidates come first.
        crossover: Share of the children that have two parents, in ``[0, 1]``.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name="width", options=("8", "16", "32"), default=0)])
        >>> search = ParetoEvolution(population=2).start(space, seed=0, num_scores=2)
        >>> for _ in range(3):
        ...     proposal = search.ask()
        ...     width = float(proposal.candidate["width"])
        ...     search.tell(proposal, [width, -width])  # accuracy, and what it costs
        >>> search.ask() is None
        True
    """

    population: int = 20
    crossover: float = 0.5

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ValueError(f"population must be at least 2, got {self.population}")
        if not 0.0 <= self.crossover <= 1.0:
            raise ValueError(f"crossover must be in [0, 1], got {self.crossover}")

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> ParetoEvolutionState:
        history = History(space, self, seed, num_scores=num_scores, first=first)
        return ParetoEvolutionState(self, space, seed, history)


@final
class ParetoEvolutionState(HistoryState):
    """Pareto evolution under way."""

    def __init__(self, setting: ParetoEvolution, space: SearchSpace, seed: int, history: History) -> None:
        super().__init__(history)
        self._setting, self._space, self._seed = setting, space, seed

    @override
    def ask(self) -> Proposal | None:
        draw = random.Random(f"{self._seed}/{len(self._history)}")
        scored = self._history.scored
        is_full = len(scored) >= self._setting.population
        if scored and (is_full or self._history.refused_in_a_row() >= PATIENCE):
            best = by_front(-np.array([scores for _, scores in scored]))[: self._setting.population]
            ranked = [scored[index][0] for index in best]
            return self._history.propose(lambda attempt: self._child(ranked, draw, changes=1 + attempt // 20))
        return self._history.propose(lambda attempt: self._space.sample(draw))

    def _child(self, ranked: Sequence[Candidate], draw: random.Random, changes: int) -> Candidate:
        # Children of one population may all be known already: more mutations at once then reach further.
        child, other = (ranked[min(draw.randrange(len(ranked)) for _ in range(2))] for _ in range(2))
        if draw.random() < self._setting.crossover:
            child = {name: option if draw.random() < 0.5 else other[name] for name, option in child.items()}
        for _ in range(changes):
            child = self._space.mutated(child, draw)
        return child
