import itertools

import lightning_optim.cost.pace
from lightning_optim.cost.pace import Pace, process_pace

ALONE, SHARED = (80.0, 75.0), (152.0, 85.0)  # microseconds of the loop and of the product


def paced(monkeypatch, *moments):
    """A pace that takes nine readings of each moment: so long for the loop, so long for the product."""
    taken = iter([seconds for moment in moments for seconds in moment * 9])
    monkeypatch.setattr(lightning_optim.cost.pace, "_seconds", lambda _: next(taken))
    return Pace()


def read(pace):
    return [pace.read() for _ in range(9)]


def test_a_neighbour_that_doubles_the_loop_and_slows_the_product_a_little_is_no_calm(monkeypatch):
    pace = paced(monkeypatch, ALONE, SHARED, ALONE)
    alone, shared, again = read(pace), read(pace), read(pace)
    assert all(map(pace.is_calm, alone + again))
    assert not any(map(pace.is_calm, shared))


def test_another_frequency_is_calm(monkeypatch):
    pace = paced(monkeypatch, ALONE, tuple(2.0 * seconds for seconds in ALONE))
    assert all(map(pace.is_calm, read(pace) + read(pace)))


def test_what_came_before_the_first_calm_moment_is_no_calm_afterwards(monkeypatch):
    pace = paced(monkeypatch, SHARED, ALONE)
    shared = read(pace)
    assert all(map(pace.is_calm, shared))
    pace.remember()
    assert not any(map(pace.is_calm, shared))


def test_single_readings_that_are_far_too_small_change_nothing(monkeypatch):
    seconds = itertools.cycle([*ALONE * 4, 80.0, 240.0])
    monkeypatch.setattr(lightning_optim.cost.pace, "_seconds", lambda _: next(seconds))
    pace = Pace()
    assert all(pace.is_calm(pace.read()) for _ in range(90))


def test_a_process_has_one_pace_and_a_reading_is_a_ratio():
    assert process_pace() is process_pace()
    assert 0.0 < process_pace().read() < 1e3
