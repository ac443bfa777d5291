"""Calls timed side by side, in turns: CPU time of the calling thread, and the clock beside it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from lightning_optim.cost.pace import Pace, process_pace
from lightning_optim.cost.timing import undisturbed

_BURST_SECONDS = 5e-3  # a burst fills it with calls that are timed
_BURST_CALLS = 7  # at most
_LEAST_TURNS = 9
_PATIENCE = 3.0  # times the seconds that were asked for, to wait for so many calm turns
_MOMENTS = 24  # at most
_CLOSE = 0.1  # share of a ratio within which the middle half of its moments must lie
_CLEAR = 1.05  # the same file loaded twice can differ by two or three hundredths


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timing of a call: one entry for each moment at which it was measured, in milliseconds.

    Args:
        cpu: CPU time of the calling thread. With one intra-op thread that is all of the work, and none of the waiting.
        wall: Time on the clock, with what other work on the machine took of it.
        is_calm: Whether the core was the thread's own at these moments. If not, CPU time holds what a neighbour on the
            same core has added.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    is_calm: bool = True

    @property
    def cpu_ms(self) -> float:
        """Median CPU time."""
        return statistics.median(self.cpu)

    @property
    def wall_ms(self) -> float:
        """Median time on the clock."""
        return statistics.median(self.wall)

    @property
    def waiting(self) -> float:
        """Share of the time on the clock for which the call did not compute, in ``[0, 1]``."""
        return max(0.0, 1.0 - sum(self.cpu) / sum(self.wall))


@final
@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a figure over the moments at which it was measured.

    Args:
        low: Lower quartile.
        median: Median.
        high: Upper quartile.
        is_calm: Whether it was measured in calm.
    """

    low: float
    median: float
    high: float
    is_calm: bool = True

    @property
    def is_decided(self) -> bool:
        """Whether it was measured in calm, and lay within a tenth of the median at half of the moments or more."""
        is_close = self.low >= (1.0 - _CLOSE) * self.median and self.high <= (1.0 + _CLOSE) * self.median
        return self.is_calm and is_close

    @property
    def is_gain(self) -> bool:
        """Whether a ratio of times is above 1 for sure, by more than loading the same file anew can change it."""
        return self.is_calm and self.low > _CLEAR


def spread_of(values: Sequence[float], *, is_calm: bool = True) -> Spread:
    """Return the median and the quartiles of some values.

    Example:
        >>> spread_of([1.0, 2.0, 3.0, 4.0, 10.0])
        Spread(low=2.0, median=3.0, high=4.0, is_calm=True)
    """
    if len(values) < 2:
        return Spread(values[0], values[0], values[0], is_calm)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high, is_calm)


def speedup(base: Timing, other: Timing) -> Spread:
    """How many times faster ``other`` is than ``base``, which was timed with it: CPU times, moment by moment.

    Example:
        >>> speedup(Timing(cpu=(4.0, 4.4, 6.0), wall=(9, 9, 9)), Timing(cpu=(2.0, 2.2, 3.0), wall=(2, 2, 2)))
        Spread(low=2.0, median=2.0, high=2.0, is_calm=True)
    """
    ratios = [slow / fast for slow, fast in zip(base.cpu, other.cpu, strict=True)]
    return spread_of(ratios, is_calm=base.is_calm and other.is_calm)


def time_in_turns(calls: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, Timing]:
    """Time calls side by side, on one thread.

    In each turn every call makes a burst: once untimed, then up to seven times. The untimed one brings back what other
    calls, and other work on the machine, have thrown out of the caches: the shorter a call, the more that would
    count. The CPU time of a turn is the median of its burst, its time on the clock the mean. Turns that follow one
    another are taken together, so that there are at most 24 moments.

    Other work on the machine lengthens the clock's times, those of long calls more than those of short ones, which fit
    between two of its time slices. CPU times stay, and so do their ratios, unless the other work shares the core
    itself (``Pace``). Such turns are left out; for nine calm ones, measuring goes on for up to three times as long.

    Args:
        calls: Name -> function of which each call does the same work.
        seconds: Time to spend on all of them; at least nine turns are taken.

    Raises:
        ValueError: If ``seconds`` is not above 0.

    Example:
        >>> def work(amount):
        ...     return lambda: sum(range(amount))
        >>> times = time_in_turns({"long": work(40_000), "short": work(10_000)}, seconds=0.05)
        >>> 3.0 < speedup(times["long"], times["short"]).median < 5.0
        True
    """
    if not seconds > 0.0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    turns: list[dict[str, tuple[float, float]]] = []
    pace, order = process_pace(), list(calls)
    with undisturbed():
        sizes = {name: _burst_size(call) for name, call in calls.items()}
        pace.remember()
        readings, began = [pace.read()], time.perf_counter()
        while len(turns) < _LEAST_TURNS or _goes_on((time.perf_counter() - began) / seconds, readings, pace):
            bursts = {name: _burst(calls[name], sizes[name]) for name in order}
            turns.append({name: _of_burst(burst) for name, burst in bursts.items()})
            readings.append(pace.read())
            order.append(order.pop(0))  # no call always runs after the same one
    calm = _calm_turns(readings, pace)
    is_calm = len(calm) >= _LEAST_TURNS
    kept = [turns[place] for place in calm] if is_calm else turns
    return {name: _timing([turn[name] for turn in kept], is_calm=is_calm) for name in calls}


def _goes_on(share: float, readings: Sequence[float], pace: Pace) -> bool:
    """Whether there is time left, or patience where calm turns are still missing."""
    return share < 1.0 or (share < _PATIENCE and len(_calm_turns(readings, pace)) < _LEAST_TURNS)


def _calm_turns(readings: Sequence[float], pace: Pace) -> list[int]:
    """Turns with a calm reading before and after them."""
    calm = [pace.is_calm(reading) for reading in readings]
    return [place for place, (before, after) in enumerate(itertools.pairwise(calm)) if before and after]


def _burst_size(call: Callable[[], object]) -> int:
    for _ in range(4):  # the first calls allocate and pack weights
        call()
    ((took, _),) = _burst(call, 1)
    return min(_BURST_CALLS, max(1, round(_BURST_SECONDS / max(took, 1e-7))))


def _burst(call: Callable[[], object], size: int) -> list[tuple[float, float]]:
    """Seconds of CPU and of the clock, call by call."""
    call()
    samples = []
    for _ in range(size):
        wall, cpu = time.perf_counter(), time.thread_time()
        call()
        samples.append((time.thread_time() - cpu, time.perf_counter() - wall))
    return samples


def _of_burst(burst: Sequence[tuple[float, float]]) -> tuple[float, float]:
    cpu, wall = zip(*burst, strict=True)
    return statistics.median(cpu), statistics.fmean(wall)


def _timing(turns: Sequence[tuple[float, float]], *, is_calm: bool) -> Timing:
    cpu, wall = zip(*turns, strict=True)
    return Timing(cpu=_moments(cpu, statistics.median), wall=_moments(wall, statistics.fmean), is_calm=is_calm)


def _moments(turns: Sequence[float], middle: Callable[[Sequence[float]], float]) -> tuple[float, ...]:
    """Milliseconds, with turns that follow one another taken together."""
    count = min(_MOMENTS, len(turns))
    bounds = [place * len(turns) // count for place in range(count + 1)]
    return tuple(1e3 * middle(turns[begin:end]) for begin, end in itertools.pairwise(bounds))
