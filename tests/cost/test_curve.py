import itertools
import random

import numpy as np
import pytest

from lightning_optim.cost.curve import Curve, curve_through


def test_between_its_points_a_curve_is_numpys():
    curve = Curve((1.0, 2.0, 5.0), (2.0, 3.0, 4.0))
    for rough in np.linspace(1.0, 5.0, 17):
        assert curve.at(rough) == pytest.approx(np.interp(rough, curve.points, curve.values))


def test_beyond_its_points_the_ratio_stays():
    curve = Curve((1.0, 2.0), (2.0, 3.0))
    assert (curve.at(0.5), curve.at(4.0)) == (1.0, 6.0)


def test_no_points_leave_a_value_as_it_is():
    assert (Curve().at(3.0), Curve().inverse(3.0)) == (3.0, 3.0)


def test_the_inverse_leads_back():
    curve = Curve((1.0, 2.0, 5.0), (2.0, 3.0, 4.0))
    for rough in np.linspace(0.1, 9.0, 30):
        assert curve.inverse(curve.at(rough)) == pytest.approx(rough)


@pytest.mark.parametrize(
    ("points", "values"), [((1.0,), ()), ((2.0, 1.0), (1.0, 2.0)), ((1.0, 2.0), (2.0, 2.0)), ((0.0,), (1.0,))]
)
def test_what_does_not_rise_is_refused(points, values):
    with pytest.raises(ValueError, match="ascending"):
        Curve(points, values)


def test_what_rises_is_passed_through_and_what_falls_is_evened_out():
    rising = [(1.0, 2.0), (4.0, 3.0), (2.0, 2.5)]
    assert curve_through(rising) == Curve((1.0, 2.0, 4.0), (2.0, 2.5, 3.0))
    draw = random.Random(0)
    for _ in range(50):
        curve = curve_through([(draw.random(), draw.random()) for _ in range(8)])
        assert all(left < right for left, right in itertools.pairwise(curve.values))


def test_points_too_near_to_one_another_are_one():
    assert curve_through([(1.0, 1.0), (1.01, 2.0), (3.0, 4.0)]) == Curve((1.005, 3.0), (1.5, 4.0))


def test_pairs_that_say_nothing_are_left_out():
    assert curve_through([(0.0, 1.0), (1.0, 0.0)]) == Curve()


def test_a_curve_can_be_led_through_one_more_point():
    curve = Curve((1.0, 2.0, 5.0), (2.0, 3.0, 4.0))
    assert curve.through(3.0, 3.5) == Curve((1.0, 2.0, 3.0, 5.0), (2.0, 3.0, 3.5, 4.0))
    assert curve.through(3.0, 2.5) == Curve((1.0, 3.0, 5.0), (2.0, 2.5, 4.0))  # the second would not lie below it
    assert curve.through(2.05, 3.1) == Curve((1.0, 2.05, 5.0), (2.0, 3.1, 4.0))  # which is too near to the second
    assert Curve().through(2.0, 3.0) == Curve((2.0,), (3.0,))
    draw = random.Random(0)
    for _ in range(50):
        curve = curve_through([(draw.random(), draw.random()) for _ in range(6)])
        rough, value = draw.random(), draw.random()
        led = curve.through(rough, value)
        assert led.at(rough) == pytest.approx(value)
        assert all(left < right for left, right in itertools.pairwise(led.values))
