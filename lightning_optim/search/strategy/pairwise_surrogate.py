"""Pairwise surrogate: what a candidate will score, by its options and pairs of them, and what is worth trying next."""

# N known candidates, M of the pool, D decisions, K scores

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.encoding import Encoding, Rows, generator
from lightning_optim.search.pareto import front_ranks
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.regression import Floats, PairwiseRegression, rank_normal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.search.strategy.history import History, HistoryState

_PARENTS = 5
_MOST_CHANGES = 3
_OFFERED = 100  # candidates of a pool, best first; the first is new, unless the search is told out of turn
_WIDER = 5
_STALE = 15  # evaluations without a new best after which it explores twice as much
_MOST_EXPLORATION = 3.0
_LESS_EXPLORATION = 0.25  # with several scores, whose weights lead elsewhere each time
_AUGMENTED = (
    0.05  # of the augmented Chebyshev function: prefers, of two that are as good, the one that is better elsewhere
)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseSurrogate(Strategy):
    """Pairwise surrogate: Bayesian linear regression on options and on pairs of them, with a pool of mutations.

    The first to take where an evaluation is dear and a few dozen are all that there are. Scores are replaced by normal
    quantiles of their ranks, so that neither their scale nor a failed training matters. The regression (Baptista and
    Poloczek, 2018; arXiv:1806.08838, section 3.1, with a normal prior) expects ``mean(c)`` of each candidate ``c`` of a
    pool, give or take ``deviation(c)``: mutations of the best ones, and random ones. Proposed is the candidate of the
    largest ``mean + exploration * |z| * deviation`` with ``z`` drawn from a normal distribution anew for each proposal
    (randomised upper confidence bound: Berk et al., 2020; arXiv:2006.04296, algorithm 1). The longer there has been no
    new best, the more it explores, up to three times as much.

    With several scores, each has a regression of its own, mutations are of the Pareto front, and each proposal weighs
    the scores anew: it is the candidate whose upper bounds fall short least of the best of each score, by the augmented
    Chebyshev function with weights drawn uniformly (ParEGO: Knowles, 2006; doi:10.1109/TEVC.2005.851274, equation 2).
    A quarter of the exploration is enough, and five times as many random candidates come first.

    What is not allowed counts as worse than all others. What was asked for and not told yet makes what is alike less
    uncertain, so that candidates that are judged side by side differ (Desautels et al., 2014; section 4).

    Args:
        initial: Random candidates that come first, at least 1.
        pool: Mutations among which it chooses, at least 1; a third as many random candidates join them.
        exploration: Weight of the deviation, at least 0; the larger, the more it tries what it does not know.
        noise: Variance of the scores that options and pairs do not explain, over what they do; above 0.
        ordinal: How far neighbours in a list of options are taken to be alike, in ``[0, 1]``; where all options of a
            decision are numbers, such as widths and depths.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name=name, options=("a", "b", "c", "d"), default=0) for name in "pqrst"])
        >>> search = PairwiseSurrogate().start(space, seed=0)
        >>> best = 0
        >>> for _ in range(30):  # of 1,024
        ...     proposal = search.ask()
        ...     score = float(sum(proposal.candidate.values()))
        ...     search.tell(proposal, [score])
        ...     best = max(best, score)
        >>> best
        15.0
    """

    initial: int = 8
    pool: int = 300
    exploration: float = 4.0
    noise: float = 0.1
    ordinal: float = 0.3

    def __post_init__(self) -> None:
        for name, value in (("initial", self.initial), ("pool", self.pool)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.exploration < 0.0:
            raise ValueError(f"exploration must be at least 0, got {self.exploration}")
        if not self.noise > 0.0:
            raise ValueError(f"noise must be above 0, got {self.noise}")
        if not 0.0 <= self.ordinal <= 1.0:
            raise ValueError(f"ordinal must be in [0, 1], got {self.ordinal}")

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> PairwiseSurrogateState:
        history = History(space, self, seed, num_scores=num_scores, first=first)
        return PairwiseSurrogateState(self, space, seed, num_scores, history)


@final
class PairwiseSurrogateState(HistoryState):
    """Pairwise surrogate under way."""

    def __init__(
        self, setting: PairwiseSurrogate, space: SearchSpace, seed: int, num_scores: int, history: History
    ) -> None:
        super().__init__(history)
        self._setting, self._space, self._seed = setting, space, seed
        self._num_scores = num_scores
        self._encoding = Encoding(space)

    @override
    def ask(self) -> Proposal | None:
        draw = random.Random(f"{self._seed}/{len(self._history)}")
        ranked = self._ranked(generator(self._seed, "pool", len(self._history))) if self._is_informed else []
        return self._history.propose(
            lambda attempt: ranked[attempt] if attempt < len(ranked) else self._space.sample(draw)
        )

    @property
    def _is_informed(self) -> bool:
        # Several scores have a front to find, not a summit: that takes a wider look first.
        initial = self._setting.initial * (1 if self._num_scores == 1 else _WIDER)
        return len(self._history.entries) >= initial and bool(self._history.scored)

    def _ranked(self, draws: np.random.Generator) -> list[Candidate]:
        """The most promising candidates of the pool."""
        entries = self._history.entries
        scores = np.array([entry.scores or (-np.inf,) * self._num_scores for entry in entries])
        rows = self._encoding.rows([entry.proposal.candidate for entry in entries])
        pending = self._encoding.rows([proposal.candidate for proposal in self._history.pending])
        known, best = np.concatenate([rows, pending]), _best(scores)
        pool = self._pool(rows[best], known, draws)
        targets = np.stack([rank_normal(column) for column in scores.T], axis=1)
        regression = PairwiseRegression(
            self._encoding, known, targets, noise=self._setting.noise, ordinal=self._setting.ordinal
        )
        mean, deviation = regression.mean_and_deviation(pool)
        stale = len(entries) - 1 - int(best[0])
        more = min(1.0 + stale / _STALE, _MOST_EXPLORATION) if self._num_scores == 1 else _LESS_EXPLORATION
        weight = self._setting.exploration * more
        bounds = mean + weight * np.abs(draws.standard_normal(self._num_scores)) * deviation[:, None]
        shortfall = draws.dirichlet(np.ones(self._num_scores)) * (targets.max(axis=0) - bounds)
        promise = -shortfall.max(axis=1) - _AUGMENTED * shortfall.sum(axis=1)
        return [self._encoding.candidate(pool[index]) for index in np.argsort(-promise, kind="stable")[:_OFFERED]]

    def _pool(self, parents: Rows, known: Rows, draws: np.random.Generator) -> Rows:
        children = parents[draws.integers(len(parents), size=self._setting.pool)]
        changes = np.minimum(draws.geometric(0.6, size=len(children)), _MOST_CHANGES)
        for change in range(_MOST_CHANGES):
            children = np.where((changes > change)[:, None], self._encoding.mutated(children, draws), children)
        others = self._encoding.sample(max(1, self._setting.pool // 3), draws)
        return self._encoding.new(np.concatenate([children, others]), known)


def _best(scores: Floats) -> NDArray[np.int64]:
    """Which candidates have mutations that are worth a look: the best few, or the Pareto front."""
    allowed = np.flatnonzero(np.isfinite(scores).all(axis=1))
    if scores.shape[1] == 1:
        return allowed[np.argsort(-scores[allowed, 0], kind="stable")[:_PARENTS]]
    front: NDArray[np.int64] = allowed[front_ranks(-scores[allowed]) == 0]
    return front
