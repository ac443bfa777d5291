import pytest

from lightning_optim.cost import Timing
from lightning_optim.report import Deployment, StageResult


def stage(name, accuracy, size):
    return StageResult(
        name=name,
        validation_accuracy=accuracy,
        test_accuracy=0.5,
        parameters=1,
        macs=1,
        bytes=size,
        file=f"{name}.onnx",
    )


def timed(b1, b32, *, waiting=0.0, is_calm=True):
    """Times that were the same at all moments."""
    return {
        batch: Timing(cpu=(ms,) * 4, wall=(ms / (1.0 - waiting),) * 4, is_calm=is_calm)
        for batch, ms in ((1, b1), (32, b32))
    }


BASE, PRUNE, QAT = stage("base", 0.95, 400_000), stage("prune", 0.945, 100_000), stage("qat", 0.94, 30_000)
STAGES = [BASE, PRUNE, QAT]
INTEGERS_PAY = {"base": timed(1.0, 20.0), "prune": timed(0.5, 8.0), "qat": timed(0.3, 4.0)}
INTEGERS_DO_NOT = {**INTEGERS_PAY, "qat": timed(1.0, 15.0)}


def test_where_integer_kernels_pay_the_last_stage_is_the_model_and_nothing_is_lost():
    assert Deployment().best(STAGES, INTEGERS_PAY) == {"accuracy": "base", "speed": "qat", "size": "qat"}
    assert Deployment().chosen(STAGES, INTEGERS_PAY) == "qat"
    assert Deployment().remarks(STAGES, INTEGERS_PAY) == []


def test_where_they_do_not_the_float_file_before_is_the_model_and_a_sentence_says_why():
    assert Deployment().best(STAGES, INTEGERS_DO_NOT) == {"accuracy": "base", "speed": "prune", "size": "qat"}
    assert Deployment().chosen(STAGES, INTEGERS_DO_NOT) == "prune"
    assert Deployment().remarks(STAGES, INTEGERS_DO_NOT) == [
        "qat lost to prune in speed on this machine: a call takes 2.00 times as long at batch 1 and 1.88 times as long "
        "at batch 32. Its file has 30.0 kB against 100 kB, its validation accuracy differs by -0.50 points."
    ]


@pytest.mark.parametrize(("aim", "name"), [("accuracy", "base"), ("speed", "prune"), ("size", "qat"), ("last", "qat")])
def test_the_aim_decides_and_the_last_stage_can_be_asked_for(aim, name):
    assert Deployment(aim=aim).chosen(STAGES, INTEGERS_DO_NOT) == name


def test_a_loss_at_one_batch_size_is_told_too():
    times = {**INTEGERS_PAY, "qat": timed(0.6, 4.0)}
    (remark,) = Deployment().remarks(STAGES, times)
    assert "1.20 times as long at batch 1 and 0.50 times as long at batch 32" in remark


def test_of_files_that_are_equally_fast_the_smaller_is_the_model_and_of_equal_ones_the_more_accurate():
    assert Deployment().chosen(STAGES, {**INTEGERS_PAY, "qat": timed(0.51, 8.1)}) == "qat"
    distil = stage("distil", 0.948, 100_100)
    times = {**INTEGERS_PAY, "distil": timed(0.5, 8.0)}
    assert Deployment().chosen([BASE, PRUNE, distil], times) == "distil"
    assert Deployment().chosen([BASE, distil, PRUNE], times) == "distil"


def test_a_later_stage_that_is_only_less_accurate_has_lost():
    distil = stage("distil", 0.93, 100_100)
    (remark,) = Deployment().remarks([BASE, PRUNE, distil], {**INTEGERS_PAY, "distil": timed(0.5, 8.0)})
    assert remark.startswith("distil lost to prune: 1.50 points of validation accuracy less")


def test_what_loses_too_much_accuracy_is_for_no_aim_and_is_named():
    strict = Deployment(max_drop=0.007)
    assert strict.best(STAGES, INTEGERS_PAY) == {"accuracy": "base", "speed": "prune", "size": "prune"}
    (remark,) = strict.remarks(STAGES, INTEGERS_PAY)
    assert remark.startswith("Not accurate enough to be deployed, by the 0.7 points of validation accuracy")
    assert remark.endswith("qat (1.00).")
    assert Deployment(max_drop=0.0).best(STAGES, INTEGERS_PAY) == dict.fromkeys(("accuracy", "speed", "size"), "base")


def test_a_drop_of_exactly_what_is_allowed_is_allowed():
    assert Deployment(max_drop=0.01).chosen(STAGES, INTEGERS_PAY) == "qat"


def test_what_could_not_be_decided_is_said_and_decides_nothing():
    restless = {
        name: timed(*ms, is_calm=False) for name, ms in (("base", (1, 20)), ("prune", (0.5, 8)), ("qat", (1, 15)))
    }
    assert Deployment().chosen(STAGES, restless) == "qat"  # the smallest of those that are as fast, for all one knows
    (remark,) = Deployment().remarks(STAGES, restless)
    assert remark.startswith("Could not decide how many times faster than base these are")
    assert "prune at batch 1 (2.00 to 2.00), prune at batch 32 (2.50 to 2.50), qat at batch 1" in remark


def test_times_that_change_by_more_than_a_tenth_are_not_decided():
    unsteady = {1: Timing(cpu=(0.3, 0.4, 0.5, 0.6), wall=(1.0,) * 4), 32: Timing(cpu=(4.0,) * 4, wall=(4.0,) * 4)}
    remark = Deployment().remarks([BASE, QAT], {"base": INTEGERS_PAY["base"], "qat": unsteady})[0]
    assert "qat at batch 1 (1.92 to 2.71)." in remark


def test_a_busy_machine_is_told():
    busy = {
        name: timed(1.0 - place / 4, 20.0 - place, waiting=0.6) for place, name in enumerate(("base", "prune", "qat"))
    }
    (remark,) = Deployment().remarks(STAGES, busy)
    assert "calls spent 60% of their time on the clock waiting" in remark


def test_without_times_size_and_accuracy_decide():
    assert Deployment().best(STAGES, {}) == {"accuracy": "base", "speed": "qat", "size": "qat"}
    assert Deployment().remarks([BASE], {}) == []


def test_a_setting_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="aim must be 'accuracy', 'speed' or 'size' or 'last', got 'fast'"):
        Deployment(aim="fast")
    with pytest.raises(ValueError, match=r"max_drop is a fraction in \[0, 1\], got 1.5"):
        Deployment(max_drop=1.5)
