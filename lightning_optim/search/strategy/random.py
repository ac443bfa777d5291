"""Random search: the baseline for every other strategy."""

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
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.search.strategy.history import History, HistoryState


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch(Strategy):
    """Random search: uniform draws without repeats (Li and Talwalkar, 2019; arXiv:1902.07638).

    It takes any number of objectives.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name="mix", options=("own", "skip"), default=0)])
        >>> search = RandomSearch().start(space, seed=0)
        >>> sorted(search.ask().candidate["mix"] for _ in range(2)), search.ask()
        ([0, 1], None)
    """

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> RandomState:
        return RandomState(space, seed, History(space, self, seed, num_scores=num_scores, first=first))


@final
class RandomState(HistoryState):
    """Random search under way."""

    def __init__(self, space: SearchSpace, seed: int, history: History) -> None:
        super().__init__(history)
        self._space, self._seed = space, seed

    @override
    def ask(self) -> Proposal | None:
        draw = random.Random(f"{self._seed}/{len(self._history)}")
        return self._history.propose(lambda attempt: self._space.sample(draw))
