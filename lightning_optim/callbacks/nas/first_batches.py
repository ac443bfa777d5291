"""First batches of a loader, the same whenever they are drawn: also after a fit was stopped and resumed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, final, runtime_checkable

import numpy
import torch
from torch.utils.data import RandomSampler


@runtime_checkable
class EpochOrder(Protocol):
    """Order of a loader that a trainer tells the epoch, such as ``DistributedSampler``."""

    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        ...


@runtime_checkable
class ResumedLoader(Protocol):
    """Loader that saves its place within an epoch."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on from a place."""
        ...


@final
class FirstBatches:
    """First batches of a loader, drawn once: every iteration gives the same.

    Where the loader draws its order from random numbers, its own generator's or those of torch, NumPy or Python, the
    batches are a function of the seed; all of these go on afterwards as if nothing had been drawn.

    Args:
        batches: One loader; it is not touched if ``count`` is 0.
        count: How many batches, at least 0; fewer if the loader has fewer.
        seed: Seeds the order.

    Raises:
        TypeError: If several loaders are given.

    Example:
        >>> list(FirstBatches(iter([[1], [2], [3]]), 2, seed=0))
        [[1], [2]]
    """

    def __init__(self, batches: Iterable[Any], count: int, seed: int) -> None:
        if isinstance(batches, (Mapping, Sequence)):
            raise TypeError(f"statistics need one loader of batches, got a {type(batches).__name__}; pass calibration")
        if count and isinstance(batches, ResumedLoader):
            next(iter(batches), None)  # a resumed loader's first iteration goes on where it was; the next begins anew
        with _seeded(batches, seed):
            self._batches = list(itertools.islice(iter(batches), count)) if count else []

    def take_those_of_first_rank(self, broadcast: Callable[[Any], Any]) -> None:
        """Let all ranks have the batches of the first."""
        self._batches = broadcast(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


@contextmanager
def _seeded(batches: Iterable[Any], seed: int) -> Iterator[None]:
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    # A shuffled loader may have been given a generator since: its order must not depend on that.
    shuffled = [(sampler, sampler.generator) for sampler in _parts(batches) if isinstance(sampler, RandomSampler)]
    epochs = [(sampler, sampler.epoch) for sampler in _parts(batches) if isinstance(sampler, EpochOrder)]
    python, legacy = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            for generator, _ in generators:
                generator.manual_seed(seed)
            for sampler, _ in shuffled:
                sampler.generator = torch.Generator().manual_seed(seed)
            for spread, _ in epochs:
                spread.set_epoch(0)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(legacy)
        for generator, state in generators:
            generator.set_state(state)
        for sampler, before in shuffled:
            sampler.generator = before
        for spread, epoch in epochs:
            spread.set_epoch(epoch)


def _generators(batches: Iterable[Any]) -> list[torch.Generator]:
    held = [value for part in _parts(batches) for value in _attributes(part).values()]
    return list({id(value): value for value in held if isinstance(value, torch.Generator)}.values())


def _parts(batches: Iterable[Any]) -> list[object]:
    """What may hold the state of a loader's order: itself, its samplers and its data set."""
    own = _attributes(batches)
    nested = [batches, own.get("sampler"), own.get("dataset"), own.get("batch_sampler")]
    nested.append(_attributes(own.get("batch_sampler")).get("sampler"))
    return list({id(part): part for part in nested if part is not None}.values())


def _attributes(part: object) -> dict[str, Any]:
    # Loaders of other packages have no class that could be asked for; an iterator has no attributes at all.
    attributes: dict[str, Any] = getattr(part, "__dict__", {})
    return attributes
