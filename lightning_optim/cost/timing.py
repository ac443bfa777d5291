"""Timing of a call, relative to a reference kernel that always does the same work."""

from __future__ import annotations

import functools
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lightning_optim.cost.pace import process_pace

_SAMPLE_SECONDS = 5e-4  # a sample is long against the clock's own cost
_REFERENCE_SIZE = 96
_BLOCK = 4  # samples from one reading of the pace to the next
_PATIENCE = 3  # times the samples that are asked for, to wait for so many calm ones


def time_call(call: Callable[[], object], rounds: int = 11) -> float:
    """CPU seconds of one call, on one thread.

    Each sample is taken between two samples of a fixed matrix product and divided by their mean: what slows the
    processor down slows both. The result is the lower quartile of these ratios, times the seconds of the product in
    this process, which are measured once. Other work on the machine only ever adds time, hence the lower quartile;
    and an untimed call before each sample brings back what it has thrown out of the caches. Calls timed in calm and in
    busy moments stay comparable.

    Work that shares the core itself slows the two by other shares (``Pace``). Samples of such moments are left out, for
    up to three times as many samples; where there are still too few, all of them count, and a warning says so.

    Args:
        call: Function that is timed; each call must do the same work.
        rounds: Samples, at least 3; up to three more are taken.

    Raises:
        ValueError: If ``rounds`` is below 3.

    Example:
        >>> small, large = torch.ones(32, 32), torch.ones(256, 256)
        >>> time_call(lambda: small @ small) < time_call(lambda: large @ large)
        True
    """
    if rounds < 3:
        raise ValueError(f"rounds must be at least 3, got {rounds}")
    with undisturbed():
        calm, taken = _multiples(call, rounds)
        if len(calm) < rounds:
            warnings.warn(
                "a latency may be too long: other work shared the processor's core for as long as it was measured; "
                "measure again on an idle machine",
                stacklevel=2,
            )
        return _quartile(calm if len(calm) >= rounds else taken) * _reference_seconds()


def _multiples(call: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Samples of a call as multiples of the reference: those of calm moments, and all that were taken."""
    reference, pace = _reference(), process_pace()
    repeats = [_repeats(function) for function in (call, reference)]
    if not pace.is_known:
        pace.remember()
    calm: list[float] = []
    taken: list[float] = []
    was_calm = pace.is_calm(pace.read())
    while len(calm) < rounds and len(taken) < _PATIENCE * rounds:
        before, block = _sample(reference, repeats[1]), []
        for _ in range(_BLOCK):
            sample = _sample(call, repeats[0])
            after = _sample(reference, repeats[1])
            block.append(2.0 * sample / (before + after))
            before = after
        is_calm = pace.is_calm(pace.read())
        taken += block
        calm += block if was_calm and is_calm else []
        was_calm = is_calm
    return calm, taken


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
