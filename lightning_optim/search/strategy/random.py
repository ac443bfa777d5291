"""Random search: the baseline for every other strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate, Decision, sample_candidate
from lightning_optim.search.strategy.base import SearchState, Strategy
from lightning_optim.search.strategy.memory import Memory


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch(Strategy):
    """Random search: uniform draws without repeats (Li and Talwalkar, 2019; arXiv:1902.07638).

    Example:
        >>> search = RandomSearch().start([Decision(name="mix", options=("own", "skip"), default=0)], seed=0)
        >>> sorted(search.ask()["mix"] for _ in range(2)), search.ask()
        ([0, 1], None)
    """

    @override
    def start(self, decisions: Sequence[Decision], seed: int, first: Sequence[Candidate] = ()) -> RandomState:
        return RandomState(decisions, seed, first)


@final
class RandomState(SearchState):
    """Random search under way."""

    def __init__(self, decisions: Sequence[Decision], seed: int, first: Sequence[Candidate]) -> None:
        self._decisions, self._seed, self._memory = tuple(decisions), seed, Memory(decisions, first)

    @override
    def ask(self) -> Candidate | None:
        # A large stride: an attempt of one proposal is never an attempt of another.
        begin = len(self._memory) << 20
        return self._memory.propose(lambda attempt: sample_candidate(self._decisions, self._seed, begin + attempt))

    @override
    def tell(self, candidate: Candidate, score: float | None) -> None:
        pass

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"proposed": self._memory.state()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory.load_state(state["proposed"])
