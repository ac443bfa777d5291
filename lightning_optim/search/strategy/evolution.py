"""Regularized evolution: the oldest candidate leaves the population, not the worst."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import Strategy, check_one_score
from lightning_optim.search.strategy.history import PATIENCE, History, HistoryState, Scores


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Evolution(Strategy):
    """Regularized evolution (Real et al., 2019; arXiv:1802.01548, algorithm 1).

    The best of a random sample of the population is mutated, and the oldest candidate leaves. Two changes to the paper:
    nothing is proposed twice, and what is not allowed never enters the population.
    If random draws are refused again and again (a tight bound), mutation starts before the population is full.

    Args:
        population: Size of the population, at least 2.
        sample: Candidates that compete to be the parent, in ``[1, population]``.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name=name, options=("a", "b"), default=0) for name in ("one", "two")])
        >>> search = Evolution(population=2, sample=1).start(space, seed=0)
        >>> for _ in range(4):
        ...     proposal = search.ask()
        ...     search.tell(proposal, [float(sum(proposal.candidate.values()))])
        >>> search.ask() is None
        True
    """

    population: int = 16
    sample: int = 4

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ValueError(f"population must be at least 2, got {self.population}")
        if not 1 <= self.sample <= self.population:
            raise ValueError(f"sample must be in [1, population={self.population}], got {self.sample}")

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> EvolutionState:
        check_one_score(self, num_scores)
        return EvolutionState(self, space, seed, History(space, self, seed, first=first))


@final
class EvolutionState(HistoryState):
    """Evolution under way."""

    def __init__(self, setting: Evolution, space: SearchSpace, seed: int, history: History) -> None:
        super().__init__(history)
        self._setting, self._space, self._seed = setting, space, seed

    @override
    def ask(self) -> Proposal | None:
        draw = random.Random(f"{self._seed}/{len(self._history)}")
        alive = self._history.scored[-self._setting.population :]
        is_full = len(alive) == self._setting.population
        if alive and (is_full or self._history.refused_in_a_row() >= PATIENCE):
            return self._history.propose(lambda attempt: self._mutated(alive, draw, changes=1 + attempt // 20))
        return self._history.propose(lambda attempt: self._space.sample(draw))

    def _mutated(self, alive: Sequence[tuple[Candidate, Scores]], draw: random.Random, changes: int) -> Candidate:
        # Children of one parent may all be known already: more mutations at once then reach candidates further away.
        rivals = draw.sample(alive, min(self._setting.sample, len(alive)))
        child = max(rivals, key=lambda rival: rival[1])[0]
        for _ in range(changes):
            child = self._space.mutated(child, draw)
        return child
