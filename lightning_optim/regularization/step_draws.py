"""Draws of training steps: each call of a module has its own, which it has again when it is run once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

from lightning_optim.regularization.draws import seed_for
from lightning_optim.surgery.torch_private import checkpoints_followed


@final
@dataclass(frozen=True, slots=True)
class _Step:
    """A training step that runs, and how often each name has drawn in it."""

    number: int
    rank: int
    counts: dict[str, int] = field(default_factory=dict)


@final
class StepDraws:
    """Seeds of what is drawn in training steps: functions of a seed, the batch, the rank, a name and the call.

    A part of the network that is checkpointed draws the same in the backward as when it ran first.

    Args:
        parts: What the seeds start from.

    Example:
        >>> draws = StepDraws("dropout", 0)
        >>> with draws.step(number=3, rank=0):
        ...     first = draws.seed("net.drop"), draws.seed("net.drop")
        >>> with draws.step(number=3, rank=0):
        ...     again = draws.seed("net.drop"), draws.seed("net.drop")
        >>> first == again, len(set(first)), draws.seed("net.drop")
        (True, 2, None)
    """

    def __init__(self, *parts: int | str) -> None:
        self._parts = parts
        self._step: _Step | None = None

    @contextmanager
    def step(self, number: int, rank: int) -> Iterator[None]:
        """Run a training step inside.

        Args:
            number: Number of the batch in the fit.
            rank: The rank that trains on it.
        """
        with self._inside(_Step(number, rank)):
            yield

    def seed(self, name: str) -> int | None:
        """Seed of the next call of what has a name; ``None`` outside a training step."""
        if self._step is None:
            return None
        index = self._step.counts.get(name, 0)
        self._step.counts[name] = index + 1
        return seed_for(*self._parts, self._step.number, self._step.rank, name, index)

    @contextmanager
    def _inside(self, step: _Step) -> Iterator[None]:
        before, self._step = self._step, step
        try:
            with checkpoints_followed(self._again):
                yield
        finally:
            self._step = before

    def _again(self, function: Callable[..., Any], args: Any, is_detached: bool) -> Callable[..., Any]:  # torch's
        """What runs in the backward: the counts are those of now."""
        assert self._step is not None
        now = replace(self._step, counts=dict(self._step.counts))

        def repeated(*inputs: Any, **kwargs: Any) -> Any:
            with self._inside(replace(now, counts=dict(now.counts))):
                return function(*inputs, **kwargs)

        return repeated
