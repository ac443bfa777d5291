"""Hyperband: successive halving that begins at several fidelities in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.search.strategy.history import History
from lightning_optim.search.strategy.random import RandomSearch
from lightning_optim.search.strategy.rungs import Bracket, RungsState, check_rungs, rung_fidelities


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperband(Strategy):
    """Hyperband over any strategy (Li et al., 2018; arXiv:1603.06560, algorithm 1), its brackets without waiting.

    Brackets of successive halving take turns. That of number ``s``, from ``s_max`` down to 0, begins at the fidelity
    ``max_fidelity / factor ** s`` with ``ceil((s_max + 1) / (s + 1) * factor ** s)`` candidates, so that all spend
    about as much; the last evaluates a few in full at once. Within a bracket candidates rise as in
    ``SuccessiveHalving``. To take where it is not known how much a short training tells of a long one.

    Args:
        strategy: Proposes the candidates; any without fidelities of its own. It is told the score of the highest
            fidelity.
        min_fidelity: The least to spend on a candidate, at least 1; in units of who evaluates, such as epochs.
        max_fidelity: The most, at least ``min_fidelity``.
        factor: One in so many rises, and is given so many times as much; at least 2.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name="mix", options=("a", "b", "c"), default=0)])
        >>> search = Hyperband(max_fidelity=3).start(space, seed=0)
        >>> spent = []
        >>> while (proposal := search.ask()) is not None:
        ...     spent.append(proposal.fidelity)
        ...     search.tell(proposal, [float(proposal.candidate["mix"])])
        >>> spent
        [1, 1, 1, 3]
    """

    strategy: Strategy = field(default_factory=RandomSearch)
    min_fidelity: int = 1
    max_fidelity: int = 9
    factor: int = 3

    def __post_init__(self) -> None:
        check_rungs(self.min_fidelity, self.max_fidelity, self.factor)

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> RungsState:
        fidelities = rung_fidelities(self.min_fidelity, self.max_fidelity, self.factor)
        highest = len(fidelities) - 1
        brackets = [
            Bracket(fidelities=fidelities[highest - number :], count=_begin_with(highest, number, self.factor))
            for number in range(highest, -1, -1)
        ]
        inner = self.strategy.start(space, seed, num_scores=num_scores, first=first)
        return RungsState(inner, History(space, self, seed, num_scores=num_scores), brackets, self.factor)


def _begin_with(highest: int, number: int, factor: int) -> int:
    """How many candidates begin in a bracket, so that all brackets spend alike."""
    return -(-(highest + 1) * int(factor**number) // (number + 1))
