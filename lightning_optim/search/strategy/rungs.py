"""Rungs: candidates of an inner strategy are tried with little, and the best of them with more and more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from typing_extensions import override

from lightning_optim.search.decision import Candidate
from lightning_optim.search.pareto import by_front
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.strategy.base import SearchState
from lightning_optim.search.strategy.history import History


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """Bracket: the fidelities of its rungs, ascending, and how many candidates begin in it at a turn."""

    fidelities: tuple[int, ...]
    count: int


def check_rungs(min_fidelity: int, max_fidelity: int, factor: int) -> None:
    """Refuse settings that make no rungs.

    Raises:
        ValueError: If a value is out of range.
    """
    if not 1 <= min_fidelity <= max_fidelity:
        raise ValueError(
            f"fidelities must satisfy 1 <= min_fidelity <= max_fidelity, got {min_fidelity} and {max_fidelity}"
        )
    if factor < 2:
        raise ValueError(f"factor must be at least 2, got {factor}")


def rung_fidelities(min_fidelity: int, max_fidelity: int, factor: int) -> tuple[int, ...]:
    """The largest fidelity, and down from it a ``factor`` at a time as long as it is not below the smallest.

    Example:
        >>> rung_fidelities(2, 27, 3)
        (3, 9, 27)
    """
    steps = range(int(math.log(max_fidelity / min_fidelity, factor) + 1e-9), -1, -1)
    return tuple(max(min_fidelity, round(max_fidelity / factor**step)) for step in steps)


@final
class RungsState(SearchState):
    """Search under way whose candidates rise from rung to rung; a candidate stays in the bracket in which it begins.

    Args:
        inner: Proposes the candidates.
        history: Of candidates and fidelities.
        brackets: They take turns at new candidates.
        factor: One in so many of a rung rises to the next.
    """

    def __init__(self, inner: SearchState, history: History, brackets: Sequence[Bracket], factor: int) -> None:
        self._inner, self._history, self._factor = inner, history, factor
        self._turns = [bracket for bracket in brackets for _ in range(bracket.count)]
        self._members: dict[Bracket, list[Candidate]] = {bracket: [] for bracket in brackets}

    @override
    def ask(self) -> Proposal | None:
        risen = self._risen()
        if risen is not None:
            candidate, fidelity = risen
            return self._history.propose(lambda attempt: candidate, fidelity)
        new = self._inner.ask()
        if new is None:
            return None
        if new.fidelity is not None:
            raise ValueError("the strategy within has fidelities of its own: give one that proposes candidates alone")
        lowest = self._join(new.candidate).fidelities[0]
        return self._history.propose(lambda attempt: new.candidate, lowest)

    @override
    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> None:
        self._history.tell(proposal, scores)
        # A candidate rises after it was told, so that what comes later is of a higher fidelity.
        self._inner.tell(Proposal(candidate=proposal.candidate), scores)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**self._history.state_dict(), "inner": self._inner.state_dict()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history.load_state_dict(state)
        self._inner.load_state_dict(state["inner"])
        self._members = {bracket: [] for bracket in self._members}
        begun = {tuple(proposal.candidate.values()): proposal.candidate for proposal in self._history.proposals}
        for candidate in begun.values():
            self._join(candidate)

    def _join(self, candidate: Candidate) -> Bracket:
        """Put a new candidate in the bracket whose turn it is."""
        bracket = self._turns[sum(map(len, self._members.values())) % len(self._turns)]
        self._members[bracket].append(candidate)
        return bracket

    def _risen(self) -> tuple[Candidate, int] | None:
        """The next candidate that rises, of the highest rung that has one."""
        for bracket, members in self._members.items():
            for fidelity, above in reversed(list(itertools.pairwise(bracket.fidelities))):
                told = [entry for each in members if (entry := self._history.find(each, fidelity)) is not None]
                scored = [entry for entry in told if entry.scores is not None]
                count = len(told) // self._factor
                best = by_front(-np.array([entry.scores for entry in scored])) if scored and count else ()
                for index in best[:count]:
                    candidate = scored[index].proposal.candidate
                    if not self._history.is_known(candidate, above):
                        return candidate, above
        return None
