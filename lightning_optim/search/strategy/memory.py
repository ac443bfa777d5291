"""Which architectures a search has proposed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import final

from lightning_optim.search.decision import Architecture, Decision, check_architecture

_TRIES = 100


@final
class Memory:
    """Remembers proposals, so that none is made twice.

    Args:
        decisions: What there is to decide, at least one.
        first: Architectures to propose before any other.

    Example:
        >>> memory = Memory([Decision(name="mix", options=("own", "skip"), default=0)])
        >>> [memory.propose(lambda attempt: {"mix": 1}) for _ in range(3)]
        [{'mix': 1}, {'mix': 0}, None]
    """

    def __init__(self, decisions: Sequence[Decision], first: Sequence[Architecture] = ()) -> None:
        if not decisions:
            raise ValueError("a search needs at least one decision, got none")
        self._decisions = tuple(decisions)
        self._first = [check_architecture(decisions, architecture) for architecture in first]
        self._proposed: dict[tuple[int, ...], None] = {}

    def __len__(self) -> int:
        return len(self._proposed)

    def propose(self, draw: Callable[[int], Architecture]) -> Architecture | None:
        """Return the first new architecture: of those to come first, of 100 draws, or of the whole space in order.

        Args:
            draw: Draws an architecture, given the number of the attempt.

        Returns:
            The architecture, or ``None`` if all have been proposed.
        """
        if len(self._proposed) == math.prod(len(decision.options) for decision in self._decisions):
            return None
        drawn = (draw(attempt) for attempt in range(_TRIES))
        for architecture in itertools.chain(self._first, drawn, self._all()):
            key = self._key(architecture)
            if key not in self._proposed:
                self._proposed[key] = None
                return dict(architecture)
        raise AssertionError("a space that is not exhausted has an architecture left")

    def state(self) -> list[list[int]]:
        """Every proposal, in order."""
        return [list(key) for key in self._proposed]

    def load_state(self, proposed: Sequence[Sequence[int]]) -> None:
        """Remember these proposals instead.

        Raises:
            ValueError: If they are of another space.
        """
        names = [decision.name for decision in self._decisions]
        for options in proposed:
            if len(options) != len(names):
                raise ValueError(f"the saved search decides {len(options)} things, this space {len(names)}: {names}")
            check_architecture(self._decisions, dict(zip(names, options, strict=True)))
        self._proposed = dict.fromkeys(tuple(options) for options in proposed)

    def _key(self, architecture: Architecture) -> tuple[int, ...]:
        return tuple(architecture[decision.name] for decision in self._decisions)

    def _all(self) -> Iterator[Architecture]:
        names = [decision.name for decision in self._decisions]
        ranges = [range(len(decision.options)) for decision in self._decisions]
        return (dict(zip(names, options, strict=True)) for options in itertools.product(*ranges))
