import math
import random

import pytest

from lightning_optim.cost import Parameters
from lightning_optim.nas import Evaluation, LoggedMetric, NetworkCost, Selection
from lightning_optim.nas.result import best_of


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mode": "best"}, "mode"),
        ({"max_cost": 0}, "max_cost"),
        ({"evaluations": 0}, "evaluations"),
        ({"recalibration_batches": -1}, "recalibration_batches"),
        ({"measures": {"cost": NetworkCost()}}, "has a 'cost' already"),
        ({"objectives": ()}, "at least one of"),
        ({"objectives": ("score", "score")}, "each once"),
        ({"objectives": ("score", "size")}, "objective 'size' is not measured: choose from \\['score', 'cost'\\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        Selection(**settings)


def test_measures_out_of_range_are_refused():
    with pytest.raises(ValueError, match="mode"):
        LoggedMetric(mode="best")
    with pytest.raises(ValueError, match="bound of a cost must be positive"):
        NetworkCost(bound=0)


def test_bounds_have_a_direction_and_exclude_nan():
    assert [LoggedMetric(bound=0.5).allows(value) for value in (0.4, 0.5, 0.6, math.nan)] == [False, True, True, False]
    low = LoggedMetric(mode="min", bound=0.5)
    assert [low.allows(value) for value in (0.4, 0.5, 0.6, math.nan)] == [True, True, False, False]
    assert [NetworkCost(bound=5).allows(value) for value in (4, 5, 6, math.nan)] == [True, True, False, False]


def evaluation(**values):
    given = {"score": 0.5, "cost": 1.0} | values
    fidelity = given.pop("fidelity", None)
    rest = {name: value for name, value in given.items() if name not in ("score", "cost")}
    return Evaluation(
        architecture={"width": 0}, score=given["score"], cost=given["cost"], measures=rest, fidelity=fidelity
    )


def test_a_metric_with_a_bound_is_a_constraint_and_the_nearest_is_named_if_all_break_it():
    selection = Selection(measures={"recall": LoggedMetric(monitor="val/recall", bound=0.9)})
    good, better = evaluation(score=0.7, recall=0.91), evaluation(score=0.8, recall=0.89)
    result = best_of([good, better], selection)
    assert result.pick == good
    assert result.pareto == (good,)
    assert result.evaluations == (good, better)
    with pytest.raises(ValueError, match=r"the nearest breaks: val/recall at least 0[.]9, got 0[.]89"):
        best_of([better], selection)


def test_the_front_of_three_objectives_is_what_brute_force_finds():
    selection = Selection(measures={"size": NetworkCost(cost=Parameters())}, objectives=("score", "cost", "size"))
    draw = random.Random(0)
    found = [evaluation(score=draw.randrange(6), cost=draw.randrange(6), size=draw.randrange(6)) for _ in range(60)]

    def beats(one, other):
        pairs = [(one.score, other.score), (-one.cost, -other.cost), (-one.values["size"], -other.values["size"])]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    front = [entry for entry in found if not any(beats(other, entry) for other in found)]
    assert {repr(entry) for entry in best_of(found, selection).pareto} == {repr(entry) for entry in front}
    best = max(entry.score for entry in found)
    assert best_of(found, selection).pick.score == best


def test_what_was_evaluated_with_less_effort_is_not_picked():
    low, high = evaluation(score=0.9, fidelity=1), evaluation(score=0.8, fidelity=9)
    assert best_of([low, high], Selection()).pick == high
    assert best_of([low, high, evaluation(score=0.1)], Selection()).pick.score == 0.1
