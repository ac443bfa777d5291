"""Regularized evolution: the oldest candidate leaves the population, not the worst."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate, Decision, sample_candidate
from lightning_optim.search.strategy.base import SearchState, Strategy
from lightning_optim.search.strategy.memory import Memory

_PATIENCE = 20


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
        >>> decisions = [Decision(name=name, options=("a", "b"), default=0) for name in ("one", "two")]
        >>> search = Evolution(population=2, sample=1).start(decisions, seed=0)
        >>> for _ in range(4):
        ...     proposal = search.ask()
        ...     search.tell(proposal, float(sum(proposal.values())))
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
    def start(self, decisions: Sequence[Decision], seed: int, first: Sequence[Candidate] = ()) -> EvolutionState:
        return EvolutionState(self, decisions, seed, first)


@final
class EvolutionState(SearchState):
    """Evolution under way."""

    def __init__(
        self, setting: Evolution, decisions: Sequence[Decision], seed: int, first: Sequence[Candidate]
    ) -> None:
        self._setting, self._decisions, self._seed = setting, tuple(decisions), seed
        self._memory = Memory(decisions, first)
        self._alive: list[tuple[Candidate, float]] = []
        self._born = 0
        self._refused_in_a_row = 0

    @override
    def ask(self) -> Candidate | None:
        number = len(self._memory)
        is_impatient = self._refused_in_a_row >= _PATIENCE and bool(self._alive)
        if self._born < self._setting.population and not is_impatient:
            return self._memory.propose(
                lambda attempt: sample_candidate(self._decisions, self._seed, (number << 20) + attempt)
            )
        draw = random.Random(f"{self._seed}/mutation/{number}")
        return self._memory.propose(lambda attempt: self._mutated(draw, changes=1 + attempt // 20))

    @override
    def tell(self, candidate: Candidate, score: float | None) -> None:
        if score is None or math.isnan(score):
            self._refused_in_a_row += 1
            return
        self._refused_in_a_row = 0
        self._born += 1
        self._alive.append((dict(candidate), score))
        del self._alive[: -self._setting.population]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "proposed": self._memory.state(),
            "alive": [[candidate, score] for candidate, score in self._alive],
            "born": self._born,
            "refused_in_a_row": self._refused_in_a_row,
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory.load_state(state["proposed"])
        self._alive = [(dict(candidate), float(score)) for candidate, score in state["alive"]]
        self._born, self._refused_in_a_row = int(state["born"]), int(state["refused_in_a_row"])

    def _mutated(self, draw: random.Random, changes: int) -> Candidate:
        # Children of one parent may all be known already: more mutations at once then reach candidates further away.
        rivals = draw.sample(self._alive, min(self._setting.sample, len(self._alive)))
        child = dict(max(rivals, key=lambda rival: rival[1])[0])
        for _ in range(changes):
            decision = draw.choice(self._decisions)
            others = [option for option in range(len(decision.options)) if option != child[decision.name]]
            child[decision.name] = draw.choice(others) if others else child[decision.name]
        return child
