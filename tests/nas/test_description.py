import json
import math
import random

import numpy
import pytest

from lightning_optim.nas import Evaluation, LoggedMetric, Selection, describe_search
from lightning_optim.nas.description import decision_effects
from lightning_optim.nas.result import best_of
from lightning_optim.search import Condition, Decision, SearchSpace

SPACE = SearchSpace(
    [
        Decision(name="depth", options=("1", "2"), default=1),
        Decision(
            name="kernel", options=("3", "5", "7"), default=0, conditions=(Condition(decision="depth", options=(1,)),)
        ),
    ]
)


def evaluated(score_of, candidates, **more):
    return [Evaluation(architecture=found, score=score_of(found), cost=1.0, **more) for found in candidates]


def test_effects_are_those_of_a_ridge_regression_on_what_is_active():
    draw = random.Random(0)
    found = evaluated(lambda found: draw.random(), [SPACE.sample(draw) for _ in range(40)])
    columns = [("depth", 0), ("depth", 1), ("kernel", 0), ("kernel", 1), ("kernel", 2)]
    rows = [
        [float(entry.architecture[name] == option and (name == "depth" or entry.architecture["depth"] == 1))
         for name, option in columns]
        for entry in found
    ]  # fmt: skip
    scores = numpy.array([entry.score for entry in found])
    # Ridge as least squares with five more rows.
    stacked = numpy.concatenate([numpy.array(rows), numpy.eye(5)])
    wanted = numpy.linalg.lstsq(stacked, numpy.concatenate([scores - scores.mean(), numpy.zeros(5)]), rcond=None)[0]
    effects = decision_effects(SPACE, found, "score")
    assert [*effects["depth"].values(), *effects["kernel"].values()] == pytest.approx(list(wanted))
    assert list(effects["kernel"]) == ["3", "5", "7"]


def test_effects_leave_out_nan_lower_fidelities_and_what_was_never_seen():
    high = evaluated(lambda found: float(found["depth"]), [SPACE.canonical({"depth": d, "kernel": 0}) for d in (0, 1)])
    broken = evaluated(lambda found: math.nan, [{"depth": 1, "kernel": 2}])
    low = evaluated(lambda found: 9.0, [{"depth": 1, "kernel": 1}], fidelity=1)
    effects = decision_effects(SPACE, [*high, *broken, *low], "score")
    assert effects.keys() == {"depth", "kernel"}
    assert effects["kernel"].keys() == {"3"}
    assert effects["depth"]["1"] < 0 < effects["depth"]["2"]
    assert decision_effects(SPACE, broken, "score") == {}


def test_a_search_is_described_in_primitives_without_what_is_inactive():
    candidates = list(SPACE)
    found = evaluated(lambda found: float(found["kernel"]), candidates, measures={"f1": 0.5})
    found.append(Evaluation(architecture=candidates[0], score=math.nan, cost=1.0, measures={"f1": 0.5}))
    selection = Selection(measures={"f1": LoggedMetric(monitor="val/f1", bound=0.4)})
    described = describe_search(SPACE, selection, best_of(found, selection))
    assert described == json.loads(json.dumps(described, allow_nan=False))
    assert described["num_architectures"] == 4 == len(described["evaluations"])
    assert described["evaluations"][0]["options"] == {"depth": "1"}
    assert described["pick"] == {
        "options": {"depth": "2", "kernel": "7"},
        "values": {"score": 2.0, "cost": 1.0, "f1": 0.5},
        "fidelity": None,
    }
    assert described["measures"]["f1"] == {"title": "val/f1", "bound": 0.4, "mode": "max"}
    assert described["own"] == {"depth": "2", "kernel": "3"}
