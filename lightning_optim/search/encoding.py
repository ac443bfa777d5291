"""Candidates as rows of integers, for strategies that judge hundreds of them at once."""

# N candidates, D decisions

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from lightning_optim.search.decision import Candidate
from lightning_optim.search.space import SearchSpace

Rows = NDArray[np.int64]


def generator(*what: object) -> np.random.Generator:
    """Random numbers that are a function of what is named, in every process alike."""
    return np.random.default_rng(random.Random("/".join(map(str, what))).getrandbits(64))


@final
class Encoding:
    """Encoding of a space's candidates: a row holds the option of each decision, canonical as the space's own.

    Args:
        space: The space.

    Example:
        >>> from lightning_optim.search import Decision
        >>> encoding = Encoding(SearchSpace([Decision(name="mix", options=("own", "skip"), default=0)]))
        >>> encoding.candidate(encoding.rows([{"mix": 1}])[0])
        {'mix': 1}
    """

    def __init__(self, space: SearchSpace) -> None:
        self._names = [decision.name for decision in space.decisions]
        positions = {name: position for position, name in enumerate(self._names)}
        self._conditions = [
            [(positions[condition.decision], np.array(condition.options)) for condition in decision.conditions]
            for decision in space.decisions
        ]
        self._defaults = np.array([decision.default for decision in space.decisions])
        self.is_ordinal = np.array([all(map(_is_number, decision.options)) for decision in space.decisions])
        self.num_options: Rows = np.array([len(decision.options) for decision in space.decisions])

    def rows(self, candidates: Sequence[Candidate]) -> Rows:
        """Candidates as an array ``[N, D]``."""
        found = [[candidate[name] for name in self._names] for candidate in candidates]
        return np.array(found, dtype=np.int64).reshape(len(candidates), len(self._names))

    def candidate(self, row: Sequence[int] | Rows) -> Candidate:
        """A row as a candidate."""
        return {name: int(option) for name, option in zip(self._names, row, strict=True)}

    def active(self, rows: Rows) -> NDArray[np.bool_]:
        """Which decisions matter to each candidate, ``[N, D]``."""
        found = np.ones(rows.shape, dtype=bool)
        for position, conditions in enumerate(self._conditions):
            for other, options in conditions:
                found[:, position] &= found[:, other] & np.isin(rows[:, other], options)
        return found

    def canonical(self, rows: Rows) -> Rows:
        """The rows with inactive decisions at their defaults."""
        return np.where(self.active(rows), rows, self._defaults)

    def sample(self, count: int, draws: np.random.Generator) -> Rows:
        """Rows whose every decision is drawn uniformly, ``[count, D]``."""
        return self.canonical(draws.integers(self.num_options, size=(count, len(self._names))))

    def mutated(self, rows: Rows, draws: np.random.Generator) -> Rows:
        """Each row with another option in one active decision; what becomes active with it is drawn."""
        active, each = self.active(rows), np.arange(len(rows))
        # The largest of uniform numbers picks one of the free decisions, each as likely; without any the row stays.
        free = active & (self.num_options > 1)
        which = np.where(free, draws.random(rows.shape), -1.0).argmax(axis=1)
        step = 1 + (draws.random(len(rows)) * (self.num_options[which] - 1)).astype(np.int64)
        changed = np.where(active, rows, draws.integers(self.num_options, size=rows.shape))
        changed[each, which] += np.where(free[each, which], step, 0)
        return self.canonical(changed % self.num_options)

    def codes(self, rows: Rows) -> Rows:
        """The rows with inactive decisions at -1, so that inactive is alike to inactive alone."""
        return np.where(self.active(rows), rows, -1)

    def new(self, rows: Rows, known: Rows) -> Rows:
        """The distinct rows that are none of the known ones, in an order of their own."""
        both, first = np.unique(np.concatenate([known, rows]), axis=0, return_index=True)
        return both[first >= len(known)]


def _is_number(option: str) -> bool:
    try:
        float(option)
    except ValueError:
        return False
    return True
