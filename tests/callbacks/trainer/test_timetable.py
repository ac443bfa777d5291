"""Timetables against a walk batch by batch."""

import itertools
import math

import pytest

from lightning_optim.callbacks.trainer.timetable import Timetable

PLANS = [{0: 1}, {0: 3}, {0: 7}, {0: 4, 1: 1, 3: 2}, {0: 1, 5: 9}]


def walk(length, plan, batches):
    """Batch, step, epoch and batches of it, at the start and after each batch."""
    step = epoch = done = 0
    yield 0, 0, 0, 0
    for batch in range(1, batches + 1):
        size = plan[max(first for first in plan if first <= epoch)]
        done += 1
        step += done % size == 0 or done == length
        if done == length:
            epoch, done = epoch + 1, 0
        yield batch, step, epoch, done


def timetable(place, length, plan):
    batch, step, epoch, done = place
    return Timetable(batch=batch, step=step, epoch=epoch, done=done, length=length, accumulation=plan)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("length", [1, 5, 6, math.inf])
def test_after_steps_is_the_first_batch_by_which_they_are_taken(length, plan):
    places = list(walk(length, plan, 60))
    first = {step: next(group) for step, group in itertools.groupby(places, key=lambda place: place[1])}
    for place in places[:12]:
        for step in range(place[1] + 1, max(first) + 1):
            found = timetable(place, length, plan).after_steps(step - place[1])
            assert found == timetable(first[step], length, plan)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("length", [1, 5, 6])
def test_after_epochs_is_the_start_of_the_next(length, plan):
    places = list(walk(length, plan, 10 * length))
    for place, epoch in itertools.product(places[: 2 * length], range(3, 10)):
        found = timetable(place, length, plan).after_epochs(epoch - place[2])
        assert found == timetable(places[epoch * length], length, plan)


def test_at_the_end_of_an_epoch_and_of_a_fit_nothing_is_left_of_it():
    end = Timetable(batch=5, step=3, epoch=0, done=5, length=5, accumulation={0: 2})
    assert end.epochs == 1.0
    assert end.after_epochs(1) == Timetable(batch=5, step=3, epoch=1, done=0, length=5, accumulation={0: 2})
    assert end.after_steps(1).batch == 7
    assert end.after_steps(0) == end.after_epochs(0) == end


def test_a_million_epochs_are_counted_at_once():
    start = Timetable(batch=0, step=0, epoch=0, done=0, length=3, accumulation={0: 2, 10: 1})
    assert start.after_steps(10**9).batch == 30 + 10**9 - 20
    assert start.after_epochs(10**9).step == 20 + 3 * (10**9 - 10)
