"""REINFORCE: a policy over options, moved towards what scored above a moving average."""

# D decisions, P options of the decision that has most

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.search.decision import Candidate
from lightning_optim.search.encoding import Encoding, Rows, generator
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import SearchState, Strategy, check_one_score
from lightning_optim.search.strategy.history import History

_DRAWS = 50  # of the policy for one proposal; after them the draws are uniform, since it has nothing new to say


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Reinforce(Strategy):
    """REINFORCE with a baseline (Williams, 1992; Zoph and Le, 2017; arXiv:1611.01578, section 3.2).

    A categorical distribution over the options of each decision, as the benchmark NAS-Bench-201 has it (Dong and Yang,
    2020; arXiv:2001.00326, section 4). After a score ``r`` of a candidate, the logits of its active decisions move by
    ``learning_rate * advantage * (one_hot(option) - probabilities)`` with ``advantage = (r - baseline) / spread``;
    ``baseline`` and ``spread`` are moving averages of the scores and of how far they lie from it. So scores may have
    any unit. A candidate that the policy draws again is answered from the history: the policy learns from it once more
    and draws again, so that it does not count as an evaluation. What is not allowed counts as the worst score so far.

    To take as the member of its family in comparisons; ``PairwiseSurrogate`` needs far fewer evaluations.

    Args:
        learning_rate: Of the logits, above 0.
        decay: Of the moving averages, in ``[0, 1)``.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name="mix", options=("a", "b", "c"), default=0)])
        >>> search = Reinforce().start(space, seed=0)
        >>> for _ in range(2):
        ...     proposal = search.ask()
        ...     search.tell(proposal, [float(proposal.candidate["mix"])])
        >>> search.ask() is not None, search.ask()
        (True, None)
    """

    learning_rate: float = 0.1
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> ReinforceState:
        check_one_score(self, num_scores)
        return ReinforceState(self, space, seed, History(space, self, seed, first=first))


@final
class ReinforceState(SearchState):
    """REINFORCE under way."""

    def __init__(self, setting: Reinforce, space: SearchSpace, seed: int, history: History) -> None:
        self._setting, self._seed, self._history = setting, seed, history
        self._encoding = Encoding(space)
        options = self._encoding.num_options
        self._logits = np.where(np.arange(options.max()) < options[:, None], 0.0, -np.inf)  # [D, P]
        self._baseline: float | None = None
        self._spread = 0.0

    @override
    def ask(self) -> Proposal | None:
        draws = generator(self._seed, "policy", len(self._history))
        return self._history.propose(lambda attempt: self._drawn(draws, attempt))

    @override
    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> None:
        self._history.tell(proposal, scores)
        self._learn_again(proposal.candidate)

    @override
    def state_dict(self) -> dict[str, Any]:
        logits = [[float(value) for value in row if np.isfinite(value)] for row in self._logits]
        return {**self._history.state_dict(), "policy": [logits, self._baseline, self._spread]}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history.load_state_dict(state)
        logits, self._baseline, self._spread = state["policy"]
        for row, values in zip(self._logits, logits, strict=True):
            row[: len(values)] = values

    def _drawn(self, draws: np.random.Generator, attempt: int) -> Candidate:
        """What the policy draws; it has learned from it if it is known."""
        if attempt >= _DRAWS:
            return self._encoding.candidate(self._encoding.sample(1, draws)[0])
        # The largest of logits with Gumbel noise is a draw from their distribution.
        noisy = self._logits + draws.gumbel(size=self._logits.shape)
        candidate = self._encoding.candidate(self._encoding.canonical(noisy.argmax(axis=1)[None])[0])
        self._learn_again(candidate)
        return candidate

    def _learn_again(self, candidate: Candidate) -> None:
        entry = self._history.find(candidate)
        scored = self._history.scored
        if entry is not None and scored:
            score = min(scores[0] for _, scores in scored) if entry.scores is None else entry.scores[0]
            self._learn(self._encoding.rows([candidate]), score)

    def _learn(self, rows: Rows, score: float) -> None:
        if self._baseline is None:
            self._baseline = score
        difference, decay = score - self._baseline, self._setting.decay
        self._spread = decay * self._spread + (1.0 - decay) * abs(difference)
        advantage = difference / self._spread if self._spread > 0.0 else 0.0
        active, [row] = self._encoding.active(rows)[0], rows
        odds = np.exp(self._logits - self._logits.max(axis=1, keepdims=True))
        chosen = row[:, None] == np.arange(odds.shape[1])
        slope = np.where(active[:, None], chosen - odds / odds.sum(axis=1, keepdims=True), 0.0)
        self._logits += self._setting.learning_rate * advantage * slope
        self._baseline += (1.0 - decay) * difference
