import lightning_optim.cost.pace
from lightning_optim.cost.pace import Pace, process_pace


def paced(monkeypatch, *seconds):
    """A pace whose loop and product take so long, in turns."""
    taken = iter(seconds)
    monkeypatch.setattr(lightning_optim.cost.pace, "_seconds", lambda _: next(taken))
    return Pace()


def test_a_neighbour_that_doubles_the_loop_and_slows_the_product_a_little_is_no_calm(monkeypatch):
    pace = paced(monkeypatch, 80.0, 75.0, 152.0, 85.0, 82.0, 76.0)
    alone, shared, again = pace.read(), pace.read(), pace.read()
    assert [pace.is_calm(reading) for reading in (alone, shared, again)] == [True, False, True]


def test_another_frequency_is_calm(monkeypatch):
    pace = paced(monkeypatch, 80.0, 75.0, 160.0, 150.0)
    assert pace.is_calm(pace.read())
    assert pace.is_calm(pace.read())


def test_what_came_before_the_first_calm_moment_is_no_calm_afterwards(monkeypatch):
    pace = paced(monkeypatch, 152.0, 85.0, 80.0, 75.0)
    shared = pace.read()
    assert pace.is_calm(shared)
    pace.read()
    assert not pace.is_calm(shared)


def test_a_reading_takes_milliseconds_and_a_process_has_one_pace():
    assert process_pace() is process_pace()
    assert 0.0 < process_pace().read() < 1e3
