"""Memory of a search: the candidates that it has proposed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import final

from lightning_optim.search.decision import Candidate, Decision, check_candidate

_TRIES = 100


@final
class Memory:
    """Memory of proposals, so that none is made twice.

    Args:
        decisions: What there is to decide, at least one.
        first: Candidates that it proposes before any other.

    Example:
        >>> memory = Memory([Decision(name="mix", options=("own", "skip"), default=0)])
        >>> [memory.propose(lambda attempt: {"mix": 1}) for _ in range(3)]
        [{'mix': 1}, {'mix': 0}, None]
    """

    def __init__(self, decisions: Sequence[Decision], first: Sequence[Candidate] = ()) -> None:
        if not decisions:
            raise ValueError("a search needs at least one decision, got none")
        self._decisions = tuple(decisions)
        self._first = [check_candidate(decisions, candidate) for candidate in first]
        self._proposed: dict[tuple[int, ...], None] = {}

    def __len__(self) -> int:
        return len(self._proposed)

    def propose(self, draw: Callable[[int], Candidate]) -> Candidate | None:
        """Return the first new candidate: of ``first``, of 100 draws, or of the whole space in order.

        Args:
            draw: Draws a candidate, given the number of the attempt.

        Returns:
            The candidate, or ``None`` if all have been proposed.
        """
        if len(self._proposed) == math.prod(len(decision.options) for decision in self._decisions):
            return None
        drawn = (draw(attempt) for attempt in range(_TRIES))
        for candidate in itertools.chain(self._first, drawn, self._all()):
            key = self._key(candidate)
            if key not in self._proposed:
                self._proposed[key] = None
                return dict(candidate)
        raise AssertionError("a space that is not exhausted has a candidate left")

    def state(self) -> list[list[int]]:
        """Every proposal, in order."""
        return [list(key) for key in self._proposed]

    def load_state(self, proposed: Sequence[Sequence[int]]) -> None:
        """Replace the proposals by saved ones.

        Raises:
            ValueError: If they are of other decisions.
        """
        names = [decision.name for decision in self._decisions]
        for options in proposed:
            if len(options) != len(names):
                raise ValueError(f"the saved search decides {len(options)} things, this one {len(names)}: {names}")
            check_candidate(self._decisions, dict(zip(names, options, strict=True)))
        self._proposed = dict.fromkeys(tuple(options) for options in proposed)

    def _key(self, candidate: Candidate) -> tuple[int, ...]:
        return tuple(candidate[decision.name] for decision in self._decisions)

    def _all(self) -> Iterator[Candidate]:
        names = [decision.name for decision in self._decisions]
        ranges = [range(len(decision.options)) for decision in self._decisions]
        return (dict(zip(names, options, strict=True)) for options in itertools.product(*ranges))
