"""The run's model is the file that was found best on this machine."""

import json

import pytest
import torch
from torch import nn

from lightning_optim.export import export_onnx
from lightning_optim.recipe.artefact import save_inputs
from lightning_optim.recipe.run import Finished
from lightning_optim.recipe.summary import summarize
from lightning_optim.report import Deployment, StageResult, read_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small fast network, then one that is larger, slower and less accurate; then the export."""
    torch.manual_seed(0)
    folder, rows = tmp_path_factory.mktemp("run"), torch.rand(4, 64)
    wide = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4))
    found = []
    for place, (name, network, accuracy) in enumerate((("base", nn.Linear(64, 4), 0.9), ("qat", wide, 0.89))):
        stage = folder / "stages" / f"{place}-{name}"
        path = export_onnx(network, (rows,), stage / "model.onnx")
        save_inputs(stage / "inputs.safetensors", [rows])
        result = StageResult(
            name=name,
            validation_accuracy=accuracy,
            test_accuracy=accuracy,
            parameters=1,
            macs=1,
            bytes=path.stat().st_size,
            agreement=1.0,
            file=str(path.relative_to(folder)),
        )
        found.append(Finished(kind="train" if name == "base" else "qat", folder=stage, result=result))
    return folder, [*found, Finished(kind="export", folder=folder / "stages" / "2-export", result=found[-1].result)]


@pytest.mark.parametrize(("aim", "place", "name"), [("speed", 0, "base"), ("last", 1, "qat")])
def test_the_model_is_the_recommended_file_or_the_last_one_if_that_is_asked_for(finished, aim, place, name):
    folder, stages = finished
    report = summarize(stages, folder, seconds=0.05, deployment=Deployment(aim=aim))
    assert report.deployed.name == report.model == name
    assert (folder / "model.onnx").read_bytes() == (stages[place].folder / "model.onnx").read_bytes()
    assert report.artefacts["model.onnx"] == f"the deployed model, which is that of {name}"
    assert any(remark.startswith("model.onnx is the file of base") for remark in report.remarks) == (name == "base")


def test_the_report_on_disk_names_the_file_for_each_aim_and_has_all_times(finished):
    folder, stages = finished
    summarize(stages, folder, seconds=0.05)
    values = json.loads((folder / "report.json").read_text())
    assert values["best"] == {"accuracy": "base", "speed": "base", "size": "base"}
    assert {"cpu", "wall", "is_calm"} == set(values["timings"]["qat"]["32"])
    assert set(values["speedups"]["qat"]["1"]) == {"low", "median", "high", "is_decided"}
    assert values["stages"][1]["latency_ms_b1"] == pytest.approx(
        read_report(folder / "report.json").timings["qat"][1].cpu_ms
    )
    assert any("Integer kernels on this processor" in note for note in values["notes"])
    assert any(remark.startswith("qat lost to base") for remark in values["remarks"])


def test_a_run_that_exports_nothing_has_a_report_and_no_model(finished):
    folder, stages = finished
    (folder / "model.onnx").unlink(missing_ok=True)
    report = summarize(stages[:-1], folder, seconds=0.05)
    assert report.deployed.file == "stages/0-base/model.onnx"
    assert not (folder / "model.onnx").exists()
    assert "model.onnx" not in report.artefacts


def test_a_model_that_is_right_already_is_left_alone(finished):
    folder, stages = finished
    summarize(stages, folder, seconds=0.05, deployment=Deployment(aim="last"))
    before = (folder / "model.onnx").stat().st_mtime_ns
    summarize(stages, folder, seconds=0.05, deployment=Deployment(aim="last"))
    assert (folder / "model.onnx").stat().st_mtime_ns == before
