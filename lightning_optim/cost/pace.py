"""Pace of the processor: whether other work shares the core on which a measurement runs."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import final

import torch

_CALM = 1.25  # times the least of the process
_SAMPLES = 5
_BLOCK = 9  # readings of which the median counts: a single one may be far too small


@final
class Pace:
    """Pace: CPU time of a loop in Python over that of a matrix product, now and at the calmest moment so far.

    Two hardware threads of a core share its units, and a busy neighbour, be it in another virtual machine, adds CPU
    time to what runs here: nearly twice the time to a loop, little to a matrix product, and to a network something in
    between, which is another share for each. Neither the clock nor CPU time shows it; the ratio of these two does.
    A change of the processor's frequency leaves it as it is.
    """

    def __init__(self) -> None:
        self._least = math.inf
        self._block: list[float] = []
        matrix = torch.ones(96, 96)
        self._loop: Callable[[], object] = lambda: sum(range(8000))
        self._product: Callable[[], object] = lambda: [matrix @ matrix for _ in range(4)]

    @property
    def is_known(self) -> bool:
        """Whether there is a moment to which others are held."""
        return math.isfinite(self._least)

    def read(self) -> float:
        """Measure the ratio; takes about a millisecond."""
        reading = _seconds(self._loop) / _seconds(self._product)
        self._block.append(reading)
        if len(self._block) == _BLOCK:
            self._least = min(self._least, statistics.median(self._block))
            self._block.clear()
        return reading

    def remember(self) -> None:
        """Read until this moment counts as one to which others are held."""
        for _ in range(_BLOCK):
            self.read()

    def is_calm(self, reading: float) -> bool:
        """Whether the core was this thread's alone, by the least of the moments so far."""
        return reading <= _CALM * self._least


@functools.cache
def process_pace() -> Pace:
    """Pace of this process: the longer it has been read, the surer it has seen a calm moment."""
    return Pace()


def _seconds(call: Callable[[], object]) -> float:
    call()
    samples = []
    for _ in range(_SAMPLES):
        began = time.thread_time()
        call()
        samples.append(time.thread_time() - began)
    return min(samples)
