import math
import statistics

import pytest

from lightning_optim.recipe.mean_curves import MeanCurves


@pytest.mark.parametrize(
    ("num_steps", "stretch"), [(0, 1), (1, 1), (8, 1), (9, 2), (16, 2), (17, 4), (31, 4), (33, 8), (100, 16)]
)
def test_a_point_is_the_mean_over_its_stretch_of_steps(num_steps, stretch):
    values, curves = [float((step * 7) % 11) for step in range(num_steps)], MeanCurves(max_points=8)
    for value in values:
        curves.add({"task": value})
    stretches = [values[begin : begin + stretch] for begin in range(0, num_steps, stretch)]
    found = curves.read()
    assert list(found.batches) == [min(end, num_steps) for end in range(stretch, num_steps + stretch, stretch)]
    assert list(found.values.get("task", ())) == pytest.approx([statistics.mean(each) for each in stretches])


def test_a_curve_that_begins_late_is_averaged_over_the_steps_that_have_it():
    curves = MeanCurves(max_points=2)
    for step in range(6):
        curves.add({"task": 1.0} | ({"late": float(step)} if step >= 3 else {}))
    assert curves.read().batches == (4, 6)
    assert curves.read().values == {"task": (1.0, 1.0), "late": (3.0, 4.5)}


def test_a_loss_that_is_not_finite_leaves_a_gap():
    curves = MeanCurves()
    for value in (1.0, math.nan, math.inf, 2.0):
        curves.add({"task": value})
    assert curves.read().values["task"] == (1.0, None, None, 2.0)


def test_curves_go_on_from_their_state():
    whole, first, second = MeanCurves(4), MeanCurves(4), MeanCurves(4)
    for step in range(11):
        whole.add({"task": float(step)})
        (first if step < 6 else second).add({"task": float(step)})
        if step == 5:
            second.load_state_dict(first.state_dict())
    assert second.read() == whole.read()
