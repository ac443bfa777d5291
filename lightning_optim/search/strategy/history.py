"""History of a search: what was proposed, and what it scored."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from typing_extensions import override

from lightning_optim.search.decision import Candidate
from lightning_optim.search.proposal import Proposal
from lightning_optim.search.space import SearchSpace
from lightning_optim.search.strategy.base import SearchState, Strategy

PATIENCE = 20  # refused in a row after which a strategy stops to draw at random
_TRIES = 100

Key = tuple[int | None, tuple[int, ...]]
Scores = tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """Entry of a history: a proposal and its scores, ``None`` where it has none."""

    proposal: Proposal
    scores: Scores | None


@final
class History:
    """History of one search, so that nothing is evaluated twice.

    Args:
        space: What there is to decide.
        setting: The strategy; its state is told from others by its ``repr``.
        seed: Of the search.
        num_scores: Objectives, at least 1.
        first: Candidates that it proposes before any other.

    Raises:
        ValueError: If there is no objective, or a candidate is not one of the space.

    Example:
        >>> from lightning_optim.search import Decision, RandomSearch
        >>> space = SearchSpace([Decision(name="mix", options=("own", "skip"), default=0)])
        >>> history = History(space, RandomSearch(), seed=0)
        >>> [history.propose(lambda attempt: {"mix": 1}) for _ in range(3)]
        [Proposal(candidate={'mix': 1}, fidelity=None), Proposal(candidate={'mix': 0}, fidelity=None), None]
    """

    def __init__(
        self,
        space: SearchSpace,
        setting: Strategy,
        seed: int,
        *,
        num_scores: int = 1,
        first: Sequence[Candidate] = (),
    ) -> None:
        if num_scores < 1:
            raise ValueError(f"a search needs at least one objective, got {num_scores}")
        self._space, self._setting, self._seed, self._num_scores = space, setting, seed, num_scores
        self._first = [space.canonical(candidate) for candidate in first]
        self._proposed: dict[Key, Proposal] = {}
        self._told: dict[Key, Entry] = {}
        self._counts: Counter[int | None] = Counter()  # of proposals, by fidelity

    def __len__(self) -> int:
        """How many proposals were made."""
        return len(self._proposed)

    @property
    def entries(self) -> list[Entry]:
        """What has been told, in the order of the telling."""
        return list(self._told.values())

    @property
    def scored(self) -> list[tuple[Candidate, Scores]]:
        """The candidates that have scores, none of them NaN, in the order of the telling."""
        return [(entry.proposal.candidate, entry.scores) for entry in self._told.values() if entry.scores is not None]

    @property
    def proposals(self) -> list[Proposal]:
        """What has been proposed, in the order of the asking."""
        return list(self._proposed.values())

    @property
    def pending(self) -> list[Proposal]:
        """What has been proposed and not been told yet."""
        return [proposal for key, proposal in self._proposed.items() if key not in self._told]

    def refused_in_a_row(self) -> int:
        """How many of the last that were told have no scores."""
        refused = itertools.takewhile(lambda entry: entry.scores is None, reversed(self._told.values()))
        return sum(1 for _ in refused)

    def is_known(self, candidate: Mapping[str, int], fidelity: int | None = None) -> bool:
        """Whether a candidate was proposed at this fidelity, with or without scores by now."""
        return self._key(self._space.canonical(candidate), fidelity) in self._proposed

    def find(self, candidate: Mapping[str, int], fidelity: int | None = None) -> Entry | None:
        """The entry of a candidate at a fidelity; ``None`` if nothing was told of it."""
        return self._told.get(self._key(self._space.canonical(candidate), fidelity))

    def propose(self, draw: Callable[[int], Candidate], fidelity: int | None = None) -> Proposal | None:
        """Return the first new candidate: of ``first``, of 100 draws, or of the whole space in order.

        Args:
            draw: Draws a candidate, given the number of the attempt.
            fidelity: How much to spend on it.

        Returns:
            The proposal, or ``None`` if all have been proposed at this fidelity.
        """
        if self._counts[fidelity] == self._space.num_candidates:
            return None
        drawn = (self._space.canonical(draw(attempt)) for attempt in range(_TRIES))
        for candidate in itertools.chain(self._first, drawn, self._space):
            key = self._key(candidate, fidelity)
            if key not in self._proposed:
                return self._note(key, Proposal(candidate=dict(candidate), fidelity=fidelity))
        raise AssertionError("a space that is not used up has a candidate left")

    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> Entry:
        """Note the scores of a proposal; with a NaN among them it has none.

        Raises:
            ValueError: If the proposal was not asked for, or there are more or fewer scores than objectives.
        """
        key = self._key(self._space.checked(proposal.candidate), proposal.fidelity)
        if key not in self._proposed:
            raise ValueError(f"{proposal} was not asked for: tell the scores of what ask returned")
        if scores is not None and len(scores) != self._num_scores:
            raise ValueError(f"a proposal needs {self._num_scores} scores, one per objective, got {len(scores)}")
        is_scored = scores is not None and not any(map(math.isnan, scores))
        entry = Entry(proposal, tuple(map(float, scores)) if is_scored and scores is not None else None)
        self._told[key] = entry
        return entry

    def state_dict(self) -> dict[str, Any]:
        """The history and what it is of, as plain primitives."""
        numbers = {key: number for number, key in enumerate(self._proposed)}
        told = [[numbers[key], entry.scores and list(entry.scores)] for key, entry in self._told.items()]
        proposed = [[fidelity, list(options)] for fidelity, options in self._proposed]
        return {"search": self._identity(), "proposed": proposed, "told": told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the history by a saved one.

        Raises:
            ValueError: If it is of another search, saying in what they differ.
        """
        ours, theirs = self._identity(), state["search"]
        for key, value in ours.items():
            if theirs.get(key) != value:
                raise ValueError(f"the saved search has another {key}: {theirs.get(key)}, and this one {value}")
        self._proposed, self._told, self._counts = {}, {}, Counter()
        names = [decision.name for decision in self._space.decisions]
        for fidelity, options in state["proposed"]:
            candidate = self._space.checked(dict(zip(names, options, strict=True)))
            self._note(self._key(candidate, fidelity), Proposal(candidate=candidate, fidelity=fidelity))
        proposals = list(self._proposed.values())
        for number, scores in state["told"]:
            self.tell(proposals[number], scores)

    def _note(self, key: Key, proposal: Proposal) -> Proposal:
        self._proposed[key] = proposal
        self._counts[proposal.fidelity] += 1
        return proposal

    def _key(self, candidate: Candidate, fidelity: int | None) -> Key:
        return fidelity, tuple(candidate[decision.name] for decision in self._space.decisions)

    def _identity(self) -> dict[str, Any]:
        # As JSON reads it back: lists, no tuples.
        return {
            "strategy": repr(self._setting),
            "space": [
                {**asdict(decision), "options": list(decision.options),
                 "conditions": [[entry.decision, list(entry.options)] for entry in decision.conditions]}
                for decision in self._space.decisions
            ],
            "seed": self._seed,
            "objectives": self._num_scores,
        }  # fmt: skip


class HistoryState(SearchState):
    """Search whose state is its history alone: what it proposes is a function of the seed and of what it was told.

    Args:
        history: Of this search.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    @override
    def tell(self, proposal: Proposal, scores: Sequence[float] | None) -> None:
        self._history.tell(proposal, scores)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._history.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history.load_state_dict(state)
