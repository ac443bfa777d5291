"""Windows at their edges, and which fits they refuse."""

import math

import pytest

from lightning_optim import Window
from lightning_optim.window import Clock


def clock(**given):
    """A fit of 10 epochs, 50 steps and 100 batches, at its start."""
    counts = {"batch": 0, "step": 0, "epoch": 0.0}
    return Clock(**counts | {"total_batches": 100, "total_steps": 50, "total_epochs": 10} | given)


def test_a_fraction_is_of_the_batches_and_a_step_an_optimizer_step():
    now = clock(batch=30, step=15, epoch=3.0)
    assert Window(end=0.6).progress(now) == pytest.approx(0.5)
    assert Window(end=60, unit="step").progress(now) == 0.25
    assert Window().progress(clock(batch=31, step=15)) == 0.31


def test_an_end_that_is_written_as_a_sum_of_fractions_is_met():
    assert Window(end=0.1 + 0.2).progress(clock(batch=30)) == 1.0
    assert Window(begin=0.1 + 0.2).progress(clock(batch=30)) == 0.0
    assert Window(begin=0.3).progress(clock(batch=29)) is None


@pytest.mark.parametrize("unit", ["fraction", "step", "epoch"])
def test_a_fit_without_a_known_end_is_refused_and_told_why(unit):
    unknown = {"total_batches": math.inf, "total_steps": math.inf}
    with pytest.raises(ValueError, match="it has no end that is known at its start: set max_steps"):
        Window(unit=unit).check(clock(**unknown, total_epochs=math.inf))
    if unit == "epoch":
        Window(unit=unit).check(clock(**unknown))
        with pytest.raises(ValueError, match="data have no length"):
            Window(unit=unit).check(clock(total_epochs=math.inf))
    else:
        with pytest.raises(ValueError, match="its training data have no length: set max_steps"):
            Window(unit=unit).check(clock(**unknown))
    if unit != "fraction":
        Window(end=5, unit=unit).check(clock(**unknown, total_epochs=math.inf))


@pytest.mark.parametrize(("unit", "end"), [("fraction", 1), ("step", 50), ("epoch", 10)])
def test_a_window_that_opens_after_the_fit_is_refused(unit, end):
    with pytest.raises(ValueError, match=f"opens at {unit} {end}, but the fit ends at {end}"):
        Window(begin=end, unit=unit).check(clock())
