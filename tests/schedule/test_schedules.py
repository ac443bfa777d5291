"""Every schedule against its formula, worked by hand, and over windows in every unit."""

import math

import pytest

from lightning_optim import Window
from lightning_optim.schedule import Constant, Cosine, Cubic, Exponential, Iterative, Linear, Steps
from lightning_optim.window import Clock


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(value=0.6), [0.6, 0.6, 0.6, 0.6, 0.6]),
        (Linear(start=0.2, end=0.6), [0.2, 0.3, 0.4, 0.5, 0.6]),
        # 0.8 - 0.8 * (1 - t) ** 3
        (Cubic(end=0.8), [0.0, 0.4625, 0.7, 0.7875, 0.8]),
        # 0.05 * 16 ** t
        (Exponential(start=0.05, end=0.8), [0.05, 0.1, 0.2, 0.4, 0.8]),
        # 0.4 * (1 - cos(pi * t))
        (Cosine(end=0.8), [0.0, 0.4 - 0.4 / math.sqrt(2), 0.4, 0.4 + 0.4 / math.sqrt(2), 0.8]),
        # a quarter of what is left goes in each of two rounds: 1 - 0.75, 1 - 0.75 ** 2
        (Iterative(end=0.4375, rounds=2), [0.25, 0.25, 0.4375, 0.4375, 0.4375]),
        (Steps(values=[0.1, 0.2, 0.3, 0.4]), [0.1, 0.2, 0.3, 0.4, 0.4]),
        (Steps(values=[0.1, 0.2, 0.3], at=[0.0, 0.25, 0.75]), [0.1, 0.2, 0.2, 0.3, 0.3]),
        (Steps(values=[0.1, 0.2], at=[0.0, 1.0]), [0.1, 0.1, 0.1, 0.1, 0.2]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_values_at_each_quarter(schedule, expected):
    assert [schedule(quarter / 4) for quarter in range(5)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", [Linear(end=0.9), Cubic(end=0.9), Cosine(end=0.9), Iterative(end=0.9, rounds=7)])
def test_the_end_is_reached_to_the_bit(schedule):
    assert schedule(1.0) == 0.9


@pytest.mark.parametrize(
    "window",
    [
        Window(begin=2, end=6, unit="epoch", every=1),
        Window(begin=20, end=60, unit="step", every=10),
        Window(begin=0.2, end=0.6, unit="fraction", every=0.1),
    ],
    ids=lambda window: window.unit,
)
def test_epochs_steps_and_fractions_of_the_fit_are_three_words_for_one_window(window):
    seen = []
    for step in range(100):
        progress = window.progress(
            Clock(batch=step, step=step, epoch=step / 10, total_batches=100, total_steps=100, total_epochs=10)
        )
        seen.append(None if progress is None else Linear(end=0.8)(progress))
    expected = [None] * 20 + [0.0] * 10 + [0.2] * 10 + [0.4] * 10 + [0.6] * 10 + [0.8] * 40
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "at", "message"),
    [
        ([], None, "at least one value"),
        ([0.1, 0.2], [0.0], "where each of the 2 values begins, got 1"),
        ([0.1, 0.2], [0.1, 0.5], "rise from 0"),
        ([0.1, 0.2], [0.0, 0.0], "rise from 0"),
        ([0.1, 0.2], [0.0, 1.5], "at most 1"),
    ],
)
def test_steps_that_are_no_table_are_refused(values, at, message):
    with pytest.raises(ValueError, match=message):
        Steps(values=values, at=at)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        Exponential(start=0.0, end=0.5)
    with pytest.raises(ValueError, match="end must be"):
        Iterative(end=1.0)
    with pytest.raises(ValueError, match="rounds"):
        Iterative(end=0.5, rounds=0)
