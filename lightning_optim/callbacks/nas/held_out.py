"""Held-out batches: a part of the training samples, for the steps of architecture parameters."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

Loader = DataLoader[Any]

_INSTEAD = "or take a sampler that holds nothing out, such as FairNAS"


@runtime_checkable
class SplittableLoader(Protocol):
    """Loader that is none of torch's, and splits its samples itself."""

    @property
    def num_samples(self) -> int:
        """Number of its samples."""
        ...

    def hold_out(self, share: float, seed: int) -> tuple[SplittableLoader, SplittableLoader]:
        """Split it at random in two loaders without a common sample: of what is kept, and of the share held out."""
        ...

    def batch(self, number: int) -> Any:
        """Return the batch of a number, from 0 on over all epochs: the same in every run."""
        ...


@final
class HeldOutBatches:
    """Batches of samples that are held out: number ``n`` is the same in every run.

    Args:
        loader: Gives the size of a batch, and how it is loaded and put together.
        samples: Indices of the samples held out, in the loader's dataset.
        seed: Seeds their order; each pass has another one.
        rank: Number of this process.
        num_ranks: How many there are; each has a part of every batch.
    """

    def __init__(self, loader: Loader, samples: Sequence[int], seed: int, rank: int, num_ranks: int) -> None:
        self._loader, self.samples, self._seed = loader, tuple(samples), seed
        self._rank, self._num_ranks = rank, num_ranks
        self._next, self._batches = 0, iter(())

    @property
    def num_samples(self) -> int:
        """Number of the samples held out."""
        return len(self.samples)

    def batch(self, number: int) -> Any:
        """Return the batch of a number, from 0 on; those that follow one another are loaded ahead by the workers."""
        if number != self._next or not isinstance(self._batches, _Batches):
            self._batches = _Batches(self._loader, self._indices(number), self._seed)
        self._next = number + 1
        return next(self._batches)

    def _indices(self, number: int) -> Iterator[list[int]]:
        size = (self._loader.batch_size or 1) * self._num_ranks
        num_batches = len(self.samples) // size
        while True:
            turn, place = divmod(number, num_batches)
            order = list(self.samples)
            random.Random(f"{self._seed}/held out/{turn}").shuffle(order)
            for at in range(place, num_batches):
                yield order[at * size : (at + 1) * size][self._rank :: self._num_ranks]
            number += num_batches - place


@final
class _Batches:
    """One pass of a loader over given indices; torch's own random numbers are left alone."""

    def __init__(self, like: Loader, indices: Iterator[list[int]], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._rest = iter(
            DataLoader(
                like.dataset, batch_sampler=_Given(indices), generator=generator,
                num_workers=like.num_workers, collate_fn=like.collate_fn, pin_memory=like.pin_memory,
                timeout=like.timeout, worker_init_fn=like.worker_init_fn, prefetch_factor=like.prefetch_factor,
                multiprocessing_context=like.multiprocessing_context,
            )
        )  # fmt: skip

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Any:
        return next(self._rest)


@final
class _Given:
    """Batch sampler of given indices."""

    def __init__(self, indices: Iterator[list[int]]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[list[int]]:
        return self._indices


def split_loader(loader: Any, share: float, seed: int, rank: int, num_ranks: int) -> tuple[Loader, HeldOutBatches]:
    """Split training data at random, in two parts that have no sample in common.

    Args:
        loader: The user's loader.
        share: Share of the samples that is held out, in ``(0, 1)``.
        seed: Seeds the split and the order.
        rank: Number of this process.
        num_ranks: How many there are.

    Returns:
        A loader like the user's of the samples that are left, and the batches that are held out.

    Raises:
        TypeError: If this is no plain ``DataLoader`` with an order of its own.
        ValueError: If the data have no length, or are too few.
    """
    _check_kind(loader)
    order = list(range(len(loader.dataset)))
    random.Random(f"{seed}/split").shuffle(order)
    num_held = round(share * len(order))
    held, kept = sorted(order[:num_held]), sorted(order[num_held:])
    needed = loader.batch_size * num_ranks
    if min(len(held), len(kept)) < needed:
        raise ValueError(
            f"architecture steps need a part of the training samples, and {len(order)} are too few: holding out "
            f"{share:g} of them gives {len(kept)} and {len(held)}, and a batch takes {needed}; train on more samples "
            f"or in smaller batches, {_INSTEAD}"
        )
    return _like(loader, kept), HeldOutBatches(loader, held, seed, rank, num_ranks)


def _check_kind(loader: Any) -> None:
    if type(loader) is not DataLoader:
        raise TypeError(
            f"architecture steps need a part of the training samples, which is taken from one DataLoader, got a "
            f"{type(loader).__name__}: return a plain DataLoader, {_INSTEAD}"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "architecture steps need a part of the training samples, and an iterable dataset cannot be split: give one "
            f"with __len__ and __getitem__, {_INSTEAD}"
        )
    sampler = loader.sampler
    is_plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if loader.batch_size is None or not is_plain:
        what = "batch_size=None or a batch_sampler" if loader.batch_size is None else type(sampler).__name__
        raise TypeError(
            f"architecture steps need a part of the training samples, and a loader with {what} cannot be split: use "
            f"shuffle and batch_size, {_INSTEAD}"
        )


def _like(loader: Loader, samples: Sequence[int]) -> Loader:
    return DataLoader(
        Subset(loader.dataset, samples), batch_size=loader.batch_size, shuffle=type(loader.sampler) is RandomSampler,
        num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
        drop_last=loader.drop_last, timeout=loader.timeout, worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context, generator=loader.generator,
        prefetch_factor=loader.prefetch_factor, persistent_workers=loader.persistent_workers,
    )  # fmt: skip
