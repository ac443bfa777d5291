"""Timing of a call, relative to a reference kernel that always does the same work."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_SAMPLE_SECONDS = 5e-4  # a sample is long against the clock's own cost
_REFERENCE_SIZE = 96


def time_call(call: Callable[[], object], rounds: int = 11) -> float:
    """CPU seconds of one call, on one thread.

    Each sample is taken between two samples of a fixed matrix product and divided by their mean: what slows the
    processor down slows both. The result is the lower quartile of these ratios, times the seconds of the product in
    this process, which are measured once. Other work on the machine only ever adds time, hence the lower quartile;
    and an untimed call before each sample brings back what it has thrown out of the caches. Calls timed in calm and in
    busy moments stay comparable.

    Args:
        call: Function that is timed; each call must do the same work.
        rounds: Samples, at least 3.

    Raises:
        ValueError: If ``rounds`` is below 3.

    Example:
        >>> small, large = torch.ones(32, 32), torch.ones(256, 256)
        >>> time_call(lambda: small @ small) < time_call(lambda: large @ large)
        True
    """
    if rounds < 3:
        raise ValueError(f"rounds must be at least 3, got {rounds}")
    reference = _reference()
    with undisturbed():
        repeats = [_repeats(function) for function in (call, reference)]
        before, multiples = _sample(reference, repeats[1]), []
        for _ in range(rounds):
            sample = _sample(call, repeats[0])
            after = _sample(reference, repeats[1])
            multiples.append(2.0 * sample / (before + after))
            before = after
        return _quartile(multiples) * _reference_seconds()


def _reference() -> Callable[[], object]:
    matrix = torch.ones(_REFERENCE_SIZE, _REFERENCE_SIZE)
    return lambda: matrix @ matrix


@functools.cache
def _reference_seconds() -> float:
    """One scale for the whole process: a table and what it is held to are measured minutes apart."""
    reference = _reference()
    repeats = _repeats(reference)
    return _quartile([_sample(reference, repeats) for _ in range(100)])


def _quartile(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 4]


@contextmanager
def undisturbed() -> Iterator[None]:
    """One thread, no gradients, no garbage collection."""
    threads, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        if collects:
            gc.enable()


def _repeats(call: Callable[[], object]) -> int:
    """Calls that fill a sample."""
    return max(1, round(_SAMPLE_SECONDS / max(_sample(call, 2), 1e-7)))


def _sample(call: Callable[[], object], repeats: int) -> float:
    """CPU seconds per call, after an untimed one."""
    call()
    began = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - began) / repeats
