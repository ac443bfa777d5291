"""Grid search: every candidate in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import SearchState, Strategy
from lightning_optim.search.strategy.history import History


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class GridSearch(Strategy):
    """Grid search: every candidate of the space in order, the first decision varying slowest.

    To take where the space is so small that all of it is evaluated. It takes any number of objectives, and the seed
    changes nothing.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name=name, options=("a", "b"), default=0) for name in ("p", "q")])
        >>> search = GridSearch().start(space, seed=0)
        >>> [list(search.ask().candidate.values()) for _ in range(4)], search.ask()
        ([[0, 0], [0, 1], [1, 0], [1, 1]], None)
    """

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> GridState:
        return GridState(space, History(space, self, seed, num_scores=num_scores, first=first))


@final
class GridState(SearchState):
    """Grid search under way."""

    def __init__(self, space: SearchSpace, history: History) -> None:
        self._space, self._history = space, history
        self._left: Iterator[Candidate] = iter(space)

    @override
    def ask(self) -> Proposal | None:
        # The iterator saves walking over all that came before; what is not new, the history passes over.
        return self._history.propose(lambda attempt: next(self._left, self._space.default))

    @override
    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> None:
        self._history.tell(proposal, scores)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._history.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history.load_state_dict(state)
        self._left = iter(self._space)
