import math

import pytest

from lightning_optim.pruning import MetricDrop
from lightning_optim.pruning.until.metric_drop import Verdict

GOOD, REST, BACK = Verdict.GOOD, Verdict.REST, Verdict.BACK


def watch(**keywords):
    started = MetricDrop(**{"monitor": "val/score", "max_drop": 0.02} | keywords).start()
    started.note(0.9)
    return started


def verdicts(started, values):
    return [started.judge(value) for value in values]


def test_a_drop_of_just_the_allowed_size_is_allowed_in_single_precision():
    import torch

    allowed = float(torch.tensor(0.88, dtype=torch.float32))
    assert allowed < 0.9 - 0.02
    assert verdicts(watch(), [allowed, 0.8799]) == [GOOD, BACK]


def test_a_metric_that_should_be_low_may_rise_only_so_far():
    assert verdicts(watch(mode="min"), [0.5, 0.92, 0.921]) == [GOOD, GOOD, BACK]


def test_patience_forgives_so_many_validations_in_a_row():
    assert verdicts(watch(patience=2), [0.8, 0.8, 0.89, 0.8, 0.8, 0.8, 0.8]) == [
        REST,
        REST,
        GOOD,
        REST,
        REST,
        BACK,
        REST,
    ]


def test_what_is_no_number_is_not_good():
    assert verdicts(watch(), [math.nan]) == [BACK]
    assert verdicts(watch(mode="min"), [math.nan]) == [BACK]


def test_a_given_reference_stands():
    started = MetricDrop(monitor="val/score", max_drop=0.02, reference=0.7).start()
    assert started.is_ready
    started.note(0.9)
    assert started.judge(0.69) is GOOD


def test_the_last_validation_before_pruning_is_the_reference():
    started = MetricDrop(monitor="val/score", max_drop=0.02).start()
    assert not started.is_ready
    started.note(0.3)
    started.note(0.9)
    assert started.judge(0.8) is BACK


def test_it_goes_on_from_its_state():
    whole, broken = watch(patience=1), watch(patience=1)
    whole.judge(0.5), broken.judge(0.5)
    resumed = MetricDrop(monitor="val/score", max_drop=0.02, patience=1).start()
    resumed.load_state_dict(broken.state_dict())
    assert resumed.judge(0.5) is whole.judge(0.5) is BACK


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reference_must_be_a_number(bad):
    with pytest.raises(ValueError, match="before pruning"):
        MetricDrop(monitor="val/score", max_drop=0.02).start().note(bad)


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"max_drop": -0.1}, "max_drop"),
        ({"max_drop": math.nan}, "max_drop"),
        ({"max_drop": math.inf}, "max_drop"),
        ({"mode": "maximum"}, "mode"),
        ({"patience": -1}, "patience"),
        ({"reference": math.nan}, "reference"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 1.1}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
    ],
)
def test_values_out_of_range_are_refused(keywords, word):
    with pytest.raises(ValueError, match=word):
        MetricDrop(**{"monitor": "val/score", "max_drop": 0.1} | keywords)
