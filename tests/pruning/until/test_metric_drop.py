import math

import pytest

from lightning_optim.pruning import MetricDrop
from lightning_optim.pruning.until.metric_drop import Verdict

GOOD, REST, BACK = Verdict.GOOD, Verdict.REST, Verdict.BACK


def watch(**keywords):
    started = MetricDrop(**{"monitor": "val/score", "max_drop": 0.02, "patience": 0} | keywords).start()
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


def test_without_a_patience_it_waits_as_long_as_every_validation_halves_what_is_missing():
    # 0.88 is the limit: 0.08, 0.03 and 0.01 are missing, then 0.006.
    assert verdicts(watch(patience=None), [0.8, 0.85, 0.87, 0.874]) == [REST, REST, REST, BACK]
    assert verdicts(watch(patience=None), [0.8, 0.85, 0.87, 0.88]) == [REST, REST, REST, GOOD]
    assert verdicts(watch(patience=None), [0.8, 0.8]) == [REST, BACK]


@pytest.mark.parametrize(("left", "waits"), [(2, 1), (5, 2), (8, 4), (math.inf, 7)])
def test_without_a_patience_it_waits_for_half_of_the_validations_that_were_left_at_most(left, waits):
    started, halving = watch(patience=None), [0.88 - 0.8 / 2.1**k for k in range(8)]
    said = [started.judge(value, left - k) for k, value in enumerate(halving)]
    assert said[: waits + 1] == [REST] * waits + [BACK if waits < 7 else REST]


def test_without_a_patience_what_is_close_waits_for_the_last_validation_and_all_else_falls_before_it():
    assert watch(patience=None).judge(0.87, 1) is REST
    assert watch(patience=None).judge(0.85, 1) is BACK
    assert watch(patience=None).judge(0.87, 0) is BACK
    assert watch(patience=1).judge(0.87, 1) is REST


def test_the_pace_is_what_is_left_of_the_allowed_drop_and_half_at_least():
    started = watch(max_drop=0.1)
    paces = []
    for value in (0.95, 0.9, 0.88, 0.82, 0.8):
        assert started.judge(value) is GOOD
        paces.append(started.pace)
    assert paces == pytest.approx([1.0, 1.0, 0.8, 0.5, 0.5])
    strict = watch(max_drop=0.0)
    assert strict.judge(0.9) is GOOD
    assert strict.pace == 1.0


def test_how_far_to_go_next_is_read_off_a_straight_line():
    started = watch(max_drop=0.1)
    assert started.share == 0.5
    started.judge(0.85), started.judge(0.78)  # drops of 0.05 and 0.12, of which 0.1 is allowed
    assert started.share == pytest.approx(5 / 7)
    started.judge(0.1)
    assert started.share == 0.5
    started.judge(math.nan)
    assert started.share == 0.5
    started.judge(0.799)
    assert started.share == 0.9


def test_it_is_close_if_no_more_was_missing_than_is_allowed():
    started = watch(max_drop=0.1)
    started.judge(0.71)
    assert started.is_close
    started.judge(0.69)
    assert not started.is_close


def test_what_is_no_number_is_not_good():
    assert verdicts(watch(), [math.nan]) == [BACK]
    assert verdicts(watch(mode="min"), [math.nan]) == [BACK]


def test_a_given_reference_stands():
    started = MetricDrop(monitor="val/score", max_drop=0.02, reference=0.7).start()
    assert started.is_ready
    started.note(0.9)
    assert started.judge(0.69) is GOOD


def test_the_last_validation_before_pruning_is_the_reference():
    started = MetricDrop(monitor="val/score", max_drop=0.02, patience=0).start()
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
        ({"cooldown": -0.1}, "cooldown"),
        ({"cooldown": 1.1}, "cooldown"),
    ],
)
def test_values_out_of_range_are_refused(keywords, word):
    with pytest.raises(ValueError, match=word):
        MetricDrop(**{"monitor": "val/score", "max_drop": 0.1} | keywords)
