"""Sizes that a run leaves open in its files, by its configuration alone."""

import json
import sys

import numpy as np
import onnxruntime
import pytest

MINE = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, is_flat):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * 64 if is_flat else 8, 2)

    def forward(self, images):
        hidden = torch.relu(self.conv(images))
        return self.fc((hidden if self.fc.in_features > 8 else self.pool(hidden)).flatten(1))


class Module(pl.LightningModule):
    def __init__(self, is_flat=False):
        super().__init__()
        self.net, self.lr = Net(is_flat), 0.01

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(27, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x.sum((1, 2, 3)) > 0).long()), batch_size=9)

    val_dataloader = test_dataloader = train_dataloader
"""
RUN = (
    *("model._target_=mine.Module", "data._target_=mine.Data", "recipe.order=[base,qat,export]", "latency_seconds=0.1"),
    *("~recipe.stages.qat.callbacks.distillation_teacher", "hydra.run.dir=run", "deploy.aim=last"),
    *("recipe.stages.base.trainer.max_epochs=1", "recipe.stages.qat.trainer.max_epochs=2"),
)
OPEN = "recipe.dynamic={images: {2: height, 3: width}}"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a project's own module and data."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)


def outputs(path, *shape):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": np.zeros(shape, np.float32)})[0].shape


DOTTED = ["+recipe.dynamic.images.2=height", "+recipe.dynamic.images.3=width"]


@pytest.mark.parametrize("words", [[OPEN], pytest.param(DOTTED, marks=pytest.mark.slow)], ids=["mapping", "dotted"])
def test_every_file_of_a_run_takes_other_sizes_and_the_report_says_so(call, project, words):
    answer = call(*RUN, *words)
    assert answer.code == 0, answer.err
    for file in ("stages/0-base/model.onnx", "stages/1-qat/model.onnx", "model.onnx"):
        assert [outputs(project / "run" / file, rows, 1, size, 5) for rows, size in ((1, 6), (3, 20))] == [
            (1, 2),
            (3, 2),
        ]
    notes = json.loads((project / "run" / "report.json").read_text())["notes"]
    assert any("images [batch, 1, height, width]" in note for note in notes)
    assert "images [batch, 1, height, width]" in (project / "run" / "report.html").read_text()


def test_the_batch_alone_is_open_by_default_and_one_batch_alone_can_be_taken(call, project):
    answer = call(*RUN, "recipe.batch=4")
    assert answer.code == 0, answer.err
    report = json.loads((project / "run" / "report.json").read_text())
    assert any("images [4, 1, 8, 8]" in note for note in report["notes"])
    assert [each["agreement"] for each in report["stages"]] == [1.0, 1.0]  # of all rows, 4 at a time
    assert set(report["timings"]["qat"]) == {"4"}
    assert outputs(project / "run" / "model.onnx", 4, 1, 8, 8) == (4, 2)
    short = ("recipe.order=[base,export]", "hydra.run.dir=other", "recipe.stages.base.trainer.max_epochs=1")
    assert call(*RUN[:-2], *short).code == 0
    notes = json.loads((project / "other" / "report.json").read_text())["notes"]
    assert any("images [batch, 1, 8, 8]" in note for note in notes)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["recipe.dynamic={image: {2: height}}"], ["dynamic names 'image'", "['images']"]),
        (["recipe.dynamic={images: {4: height}}"], ["dimension 4", "[2, 1, 8, 8]"]),
        (["+recipe.dynamic.images.4=height"], ["dimension 4", "[2, 1, 8, 8]"]),
        (["recipe.dynamic={images: {0: rows}}"], ["recipe.dynamic['images'] must name dimensions from 1 on", "got 0"]),
        (["recipe.dynamic={images: {2: 7}}"], ["recipe.dynamic", "7"]),
        (["recipe.dynamic=height"], ["recipe.dynamic must be a mapping", "'height'"]),
        (["recipe.batch=0"], ["recipe.batch must be at least 1"]),
        (["recipe.batch=many"], ["recipe.batch must be an integer", "'many'"]),
        ([OPEN, "+model.is_flat=true"], ["the network takes no two sizes"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_opened_is_refused_before_anything_is_written(call, project, words, fragments):
    answer = call(*RUN, *words)
    assert answer.code == 1, answer.out
    (line,) = answer.err.strip().splitlines()
    assert all(fragment in line for fragment in fragments), line
    assert not (project / "run").exists()
