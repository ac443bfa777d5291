"""Successive halving: many candidates with little each, and the best with more and more."""

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
class SuccessiveHalving(Strategy):
    """Successive halving over any strategy, without waiting (ASHA: Li et al., 2020; arXiv:1810.05934, algorithm 2).

    A new candidate is evaluated at the lowest fidelity. Whenever one is among the best ``1 / factor`` of its fidelity
    it rises: it is evaluated at ``factor`` times as much, up to ``max_fidelity``. Nothing waits for a rung to be full,
    so that candidates can be judged side by side. To take where a short training tells much of a long one; where it may
    mislead, take ``Hyperband``.

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
        >>> search = SuccessiveHalving(max_fidelity=3).start(space, seed=0)
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
        brackets = [Bracket(fidelities=fidelities, count=1)]
        inner = self.strategy.start(space, seed, num_scores=num_scores, first=first)
        return RungsState(inner, History(space, self, seed, num_scores=num_scores), brackets, self.factor)
