"""Times that other work on the machine does not change."""

import gc
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

import lightning_optim.cost.turns
from lightning_optim.cost import Spread, Timing, speedup, time_in_turns
from lightning_optim.cost.turns import spread_of


@contextmanager
def two_busy_processes():
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def products():
    """A product that takes longer than a time slice, and one of a quarter of its work."""
    torch.manual_seed(0)
    large, small = torch.randn(600, 512), torch.randn(512, 512)
    quarter = large[:150].contiguous()
    return {"long": lambda: large @ small, "short": lambda: quarter @ small}


def test_beside_two_busy_processes_a_ratio_moves_by_less_than_a_tenth_or_is_not_decided():
    idle = time_in_turns(products(), seconds=0.5)
    with two_busy_processes():
        busy = time_in_turns(products(), seconds=0.5)
    calm, loaded = (speedup(times["long"], times["short"]) for times in (idle, busy))
    assert abs(loaded.median / calm.median - 1.0) < 0.1 or not (loaded.is_decided and calm.is_decided)


def test_the_clock_sees_the_waiting_and_the_cpu_time_does_not():
    def work(wait):
        def call():
            time.sleep(wait)
            return sum(range(20_000))

        return call

    times = time_in_turns({"waits": work(0.002), "computes": work(0.0)}, seconds=0.1)
    assert times["waits"].wall_ms > 2.0 + times["waits"].cpu_ms / 2
    assert times["waits"].waiting > 0.5
    assert speedup(times["waits"], times["computes"]).median == pytest.approx(1.0, rel=0.5)


def test_the_median_and_the_quartiles_are_those_of_the_moments():
    timing = Timing(cpu=(1.0, 2.0, 3.0, 4.0, 5.0), wall=(2.0, 4.0, 6.0, 8.0, 10.0))
    assert (timing.cpu_ms, timing.wall_ms, timing.waiting) == (3.0, 6.0, 0.5)
    assert spread_of(timing.cpu) == Spread(2.0, 3.0, 4.0)
    assert spread_of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_taken_moment_by_moment_so_that_what_slows_both_is_left_out():
    base, other = Timing(cpu=(2.0, 4.0, 8.0), wall=(1, 1, 1)), Timing(cpu=(1.0, 2.0, 4.0), wall=(1, 1, 1))
    assert speedup(base, other) == Spread(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high", "decided", "gain"),
    [(1.9, 2.1, True, True), (1.7, 2.1, False, True), (1.9, 2.3, False, True)],
)
def test_a_ratio_whose_moments_differ_by_more_than_a_tenth_is_not_decided(low, high, decided, gain):
    spread = Spread(low, 2.0, high)
    assert (spread.is_decided, spread.is_gain) == (decided, gain)


def test_a_few_hundredths_are_no_gain():
    assert not Spread(1.03, 1.04, 1.05).is_gain
    assert Spread(1.06, 1.07, 1.08).is_gain


def test_at_least_nine_turns_and_at_most_twenty_four_moments():
    calls = {"one": lambda: sum(range(100)), "other": lambda: sum(range(100))}
    few, many = (time_in_turns(calls, seconds=seconds) for seconds in (1e-9, 0.2))
    assert len(few["one"].cpu) == len(few["other"].wall) == 9
    assert len(many["one"].cpu) == len(many["other"].wall) == 24
    assert statistics.median(few["one"].cpu) > 0.0


def test_a_measurement_without_calm_decides_nothing_however_close_its_moments_are():
    base = Timing(cpu=(2.0, 2.0), wall=(2.0, 2.0))
    shared = Timing(cpu=(1.0, 1.0), wall=(1.0, 1.0), is_calm=False)
    assert speedup(base, shared) == Spread(2.0, 2.0, 2.0, is_calm=False)
    assert not speedup(base, shared).is_decided
    assert not speedup(base, shared).is_gain


class Readings:
    """What stands for the pace: a neighbour shares the core in these turns, given by their place."""

    def __init__(self, shared):
        self.shared, self.count = shared, -1

    def read(self):
        self.count += 1
        return 2.0 if self.shared(self.count) else 1.0

    def remember(self):
        pass

    def is_calm(self, reading):
        return reading < 1.5


def test_turns_in_which_a_neighbour_shares_the_core_are_left_out(monkeypatch):
    slow = Readings(lambda count: count % 10 > 4)

    def call():
        sum(range(30_000 if slow.shared(slow.count) else 10_000))

    monkeypatch.setattr(lightning_optim.cost.turns, "process_pace", lambda: slow)
    times = time_in_turns({"steady": lambda: sum(range(10_000)), "shaken": call}, seconds=0.3)
    assert times["shaken"].is_calm
    assert speedup(times["shaken"], times["steady"]).median == pytest.approx(1.0, rel=0.2)


def test_where_a_neighbour_never_leaves_measuring_ends_and_says_so(monkeypatch):
    monkeypatch.setattr(lightning_optim.cost.turns, "process_pace", lambda: Readings(lambda count: count > 0))
    began = time.perf_counter()
    times = time_in_turns({"one": lambda: sum(range(10_000))}, seconds=0.1)
    assert not times["one"].is_calm
    assert 0.3 < time.perf_counter() - began < 3.0


def test_what_fails_leaves_everything_as_before():
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        time_in_turns({"fails": lambda: 1 / 0}, seconds=0.1)
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="seconds must be above 0, got 0"):
        time_in_turns({"one": lambda: None}, seconds=0)
