"""Local search: from the best candidate to a better neighbour, until there is none."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import SearchState, Strategy, check_one_score
from lightning_optim.search.strategy.history import PATIENCE, History, Scores


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSearch(Strategy):
    """Local search: hill climbing with restarts (White et al., 2021; arXiv:2005.02960, algorithm 1).

    It begins at the best of some random candidates and proposes what differs in one decision, in random order. With
    ``step="first"`` it moves as soon as a neighbour is better, with ``step="steepest"`` when all neighbours are known,
    to the best of them. Where no neighbour is better, it begins anew elsewhere. Hard to beat where the scores have
    little noise, and simple to explain.

    Args:
        initial: Random candidates at each start, at least 1.
        step: When it moves.

    Raises:
        ValueError: If ``initial`` is below 1.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name=name, options=("a", "b", "c"), default=0) for name in "pqrst"])
        >>> search = LocalSearch(initial=1).start(space, seed=0)
        >>> scores = []
        >>> for _ in range(20):  # of 243
        ...     proposal = search.ask()
        ...     scores.append(float(sum(proposal.candidate.values())))
        ...     search.tell(proposal, scores[-1:])
        >>> max(scores)
        10.0
    """

    initial: int = 4
    step: Literal["first", "steepest"] = "first"

    def __post_init__(self) -> None:
        if self.initial < 1:
            raise ValueError(f"initial must be at least 1, got {self.initial}")

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> LocalState:
        check_one_score(self, num_scores)
        return LocalState(self, space, seed, History(space, self, seed, first=first))


@final
class LocalState(SearchState):
    """Local search under way."""

    def __init__(self, setting: LocalSearch, space: SearchSpace, seed: int, history: History) -> None:
        self._setting, self._space, self._seed, self._history = setting, space, seed, history
        self._climb_from = 0  # number of the entry with which this climb began

    @override
    def ask(self) -> Proposal | None:
        draw = random.Random(f"{self._seed}/{len(self._history)}")
        unknown = self._unknown_neighbours(draw)
        return self._history.propose(lambda attempt: unknown[attempt] if attempt < len(unknown) else self._start(draw))

    def _start(self, draw: random.Random) -> Candidate:
        scored = self._history.scored
        if not scored or self._history.refused_in_a_row() < PATIENCE:
            return self._space.sample(draw)
        # Next to nothing is allowed: what is near the best found so far is likelier to be.
        where = max(scored, key=lambda each: each[1])[0]
        for _ in range(draw.randint(2, 4)):
            where = self._space.mutated(where, draw)
        return where

    def _unknown_neighbours(self, draw: random.Random) -> list[Candidate]:
        """What to try next, none at a start; where a summit is reached, a start it is."""
        climb = self._history.entries[self._climb_from :]
        scored = [(entry.proposal.candidate, entry.scores) for entry in climb if entry.scores is not None]
        is_waiting = len(scored) < self._setting.initial and self._history.refused_in_a_row() < PATIENCE
        if not scored or is_waiting:
            return []
        summit = self._stand(scored)
        unknown = [each for each in self._space.neighbours(summit) if not self._history.is_known(each)]
        if not unknown and not self._history.pending:
            self._climb_from += len(climb)
        draw.shuffle(unknown)
        return unknown

    def _stand(self, scored: Sequence[tuple[Candidate, Scores]]) -> Candidate:
        """Where this climb stands, by what has been told of it."""
        where, height = max(scored[: self._setting.initial], key=lambda each: each[1])
        if self._setting.step == "first":
            return max(scored, key=lambda each: each[1])[0]
        while True:
            around = self._space.neighbours(where)
            known = [entry for entry in map(self._history.find, around) if entry is not None]
            higher = [entry for entry in known if entry.scores is not None and entry.scores > height]
            if len(known) < len(around) or not higher:
                return where
            best = max(higher, key=lambda entry: entry.scores or ())
            where, height = best.proposal.candidate, best.scores or height

    @override
    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> None:
        self._history.tell(proposal, scores)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**self._history.state_dict(), "climb_from": self._climb_from}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history.load_state_dict(state)
        self._climb_from = int(state["climb_from"])
