import json
import math
from dataclasses import fields

import pytest

from lightning_optim.cost import Timing
from lightning_optim.errors import ArtefactError
from lightning_optim.report import LossCurves, Report, StageResult, read_report


def stage(**changes):
    figures = {"name": "base", "test_accuracy": 0.9, "validation_accuracy": 0.95}
    return StageResult(**{**figures, "parameters": 10, "macs": 20, "bytes": 30, **changes})


def report(**changes):
    return Report(**{"stages": [stage(), stage(name="qat")], "parity": {"top1_agreement": 1.0}, **changes})


def test_a_report_survives_json():
    whole = report(curves={"base": (0.1, 0.5)}, versions={"torch": "2"}, artefacts={"model.onnx": "int8"})
    again = Report.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert again.to_dict() == whole.to_dict()
    assert (again.base.name, again.deployed.name) == ("base", "qat")


def test_times_survive_json_and_what_follows_from_them_is_beside_them():
    times = {
        "base": {1: Timing(cpu=(2.0, 2.2), wall=(3.0, 3.0))},
        "qat": {1: Timing(cpu=(1.0, 1.1), wall=(1.0, 1.0), is_calm=False)},
    }
    whole = report(timings=times, best={"speed": "qat"}, model="base", remarks=["one"])
    values = json.loads(json.dumps(whole.to_dict()))
    assert values["speedups"] == {
        "base": {},
        "qat": {"1": {"low": 2.0, "median": 2.0, "high": 2.0, "is_decided": False}},
    }
    again = Report.from_dict(values)
    assert again.timings == times
    assert again.to_dict() == whole.to_dict()
    assert again.deployed.name == "base"
    assert again.speedup(again.base, 1) is None


def test_curves_of_losses_survive_json():
    curves = LossCurves(batches=[2, 3], values={"task": [2.5, math.nan], "total": [1.5, math.inf]})
    whole = report(losses={"base": curves})
    again = Report.from_dict(json.loads(json.dumps(whole.to_dict(), allow_nan=False)))
    assert again.losses == whole.losses == {"base": curves}
    assert curves.values == {"task": (2.5, None), "total": (1.5, None)}


def test_curves_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="curve 'task' has 1 points, the others have 2"):
        LossCurves(batches=[1, 2], values={"task": [1.0]})
    with pytest.raises(ArtefactError, match="no curves of losses"):
        LossCurves.from_dict({"batches": [1, 2], "values": [1.0]})


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "x"},
        {"best": {"size": "x"}},
        {"timings": {"x": {}}},
        {"losses": {"x": LossCurves(batches=[], values={})}},
    ],
)
def test_a_name_that_is_no_stages_is_refused(changes):
    with pytest.raises(ValueError, match="'x' is none of them"):
        report(**changes)


def test_a_stage_holds_what_programs_read():
    assert list(report().to_dict()["stages"][0]) == [item.name for item in fields(StageResult)]
    assert {"name", "test_accuracy", "parameters", "macs", "bytes", "latency_ms_b1", "latency_ms_b32"} <= set(
        stage().to_dict()
    )


def test_figures_out_of_range_and_empty_reports_are_refused():
    with pytest.raises(ValueError, match=r"test_accuracy of stage 'base' is a fraction in \[0, 1\], got 98.4"):
        stage(test_accuracy=98.4)
    with pytest.raises(ValueError, match="at least one stage"):
        report(stages=[])
    with pytest.raises(ValueError, match="top1_agreement"):
        report(parity={})


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"stages": [{"name": "x"}], "parity": {}}', '{"stages": [], "extra": 1}']
)
def test_a_file_that_is_no_report_says_so_in_one_line(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ArtefactError) as caught:
        read_report(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtefactError, match="can be read"):
        read_report(tmp_path / "none.json")
