"""Optuna sampler: any sampler of Optuna as a strategy."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.optional import require
from lightning_optim.search.decision import Candidate
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import SearchState, Strategy
from lightning_optim.search.strategy.history import History

_DRAWS = 50  # of the sampler for one proposal; after them the draws are uniform, since it only repeats itself

Options = tuple[int, ...]


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class OptunaSampler(Strategy):
    """Optuna sampler (Akiba et al., 2019; arXiv:1907.10902): any of ``optuna.samplers`` proposes. Extra ``hpo``.

    Each decision is a categorical parameter, asked for only where it is active. A candidate that the sampler draws
    again is answered from the history, so that it learns from it and does not count as an evaluation; what is not
    allowed is a failed trial. Several scores are several directions of the study, as far as the sampler takes them. To
    take where Optuna is at home already, and to compare with. Neither a storage nor a pruner is used.

    Args:
        sampler: Builds the sampler, given ``seed``; ``None`` takes ``TPESampler``. In a configuration a node with a
            ``_target_`` such as ``optuna.samplers.NSGAIISampler`` and ``_partial_: true``.

    Example:
        >>> from lightning_optim.search import Decision, SearchSpace
        >>> space = SearchSpace([Decision(name="mix", options=("own", "skip"), default=0)])
        >>> search = OptunaSampler().start(space, seed=0)
        >>> sorted(search.ask().candidate["mix"] for _ in range(2)), search.ask()
        ([0, 1], None)
    """

    sampler: Any = None

    def __post_init__(self) -> None:
        if self.sampler is not None and not callable(self.sampler):
            raise TypeError(f"OptunaSampler: sampler must be what builds a sampler, or None, got {self.sampler!r}")

    @override
    def start(
        self, space: SearchSpace, seed: int, *, num_scores: int = 1, first: Sequence[Candidate] = ()
    ) -> OptunaState:
        return OptunaState(
            self, space, seed, lambda: History(space, self, seed, num_scores=num_scores, first=first), num_scores
        )


@final
class OptunaState(SearchState):
    """Optuna's study under way.

    The sampler keeps random numbers of its own, so that a saved search is one that is lived through again: the order of
    asking and telling is kept.
    """

    def __init__(
        self,
        setting: OptunaSampler,
        space: SearchSpace,
        seed: int,
        begin: Callable[[], History],
        num_scores: int,
    ) -> None:
        self._setting, self._space, self._seed, self._begin = setting, space, seed, begin
        self._num_scores = num_scores
        self._optuna: ModuleType = require("optuna", "hpo")
        self._restart()

    @override
    def ask(self) -> Proposal | None:
        draw = random.Random(f"{self._seed}/{len(self._history)}")
        proposal = self._history.propose(lambda attempt: self._drawn(draw, attempt))
        self._events.append(None)
        return proposal

    @override
    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> None:
        entry = self._history.tell(proposal, scores)
        self._events.append([self._options(proposal.candidate), entry.scores and list(entry.scores)])
        trial = self._trials.pop(self._options(proposal.candidate), None)
        if trial is not None:
            self._finish(trial, entry.scores)
        elif entry.scores is not None:
            self._study.add_trial(self._told_trial(proposal.candidate, entry.scores))

    @override
    def state_dict(self) -> dict[str, Any]:
        events = [event and [list(event[0]), event[1]] for event in self._events]
        return {**self._history.state_dict(), "events": events}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._begin().load_state_dict(state)  # refuses what is of another search
        self._restart()
        names = [decision.name for decision in self._space.decisions]
        for event in state["events"]:
            if event is None:
                self.ask()
            else:
                self.tell(Proposal(candidate=dict(zip(names, event[0], strict=True))), event[1])

    def _restart(self) -> None:
        self._history = self._begin()
        self._events: list[Any] = []  # None for what was asked, options and scores for what was told
        self._trials: dict[Options, Any] = {}  # by the options of what has been asked for and not been told
        build = self._setting.sampler or self._optuna.samplers.TPESampler
        sampler = build(seed=random.Random(f"{self._seed}/sampler").getrandbits(32))
        logs = self._optuna.logging
        verbosity = logs.get_verbosity()
        logs.set_verbosity(logs.WARNING)  # it announces each study, and a restart makes another
        try:
            self._study = self._optuna.create_study(sampler=sampler, directions=["maximize"] * self._num_scores)
        finally:
            logs.set_verbosity(verbosity)

    def _drawn(self, draw: random.Random, attempt: int) -> Candidate:
        """What the sampler draws; it has been told the scores if they are known."""
        if attempt >= _DRAWS:
            return self._space.sample(draw)
        trial, candidate = self._study.ask(), self._space.default
        for decision in self._space.decisions:
            # Conditions are on earlier decisions: those after this one do not matter to whether it is active.
            if decision in self._space.active(candidate):
                candidate[decision.name] = trial.suggest_categorical(decision.name, range(len(decision.options)))
        candidate = self._space.canonical(candidate)
        if self._history.is_known(candidate):
            entry = self._history.find(candidate)
            self._finish(trial, None if entry is None else entry.scores)
        else:
            self._trials[self._options(candidate)] = trial
        return candidate

    def _finish(self, trial: Any, scores: Sequence[float] | None) -> None:
        if scores is None:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, list(scores))

    def _told_trial(self, candidate: Candidate, scores: Sequence[float]) -> Any:
        """A trial of what the sampler has not drawn itself."""
        active = self._space.active(candidate)
        categorical = self._optuna.distributions.CategoricalDistribution
        return self._optuna.trial.create_trial(
            params={decision.name: candidate[decision.name] for decision in active},
            distributions={decision.name: categorical(range(len(decision.options))) for decision in active},
            values=list(scores),
        )

    def _options(self, candidate: Mapping[str, int]) -> Options:
        return tuple(candidate[decision.name] for decision in self._space.decisions)
