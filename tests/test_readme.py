"""The README's blocks, run as they stand but for the number of epochs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def example() -> str:
    return blocks("python")[0]


def run(code: str, epochs: int) -> dict:
    names: dict = {}
    exec(re.sub(r"max_epochs=\d+", f"max_epochs={epochs}", code), names)  # noqa: S102  # our own README
    return names


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_readme_runs_and_its_file_answers_as_the_trained_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # After fewer epochs two classes may lie on one integer, and either is the answer.
    names = run(example(), epochs=3)

    assert names["prune"].sparsity == pytest.approx(0.5, abs=0.03)
    images = next(iter(names["data"].test_dataloader()))[0]
    session = onnxruntime.InferenceSession("model.onnx")
    (deployed,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        trained = names["quantize"].simulated(names["model"])(images).numpy()
    step = np.diff(np.unique(deployed)).min()
    assert np.abs(deployed - trained).max() < 1.01 * step
    assert np.array_equal(deployed.argmax(1), trained.argmax(1))


def test_the_example_is_short():
    assert len([line for line in example().splitlines() if line.strip()]) <= 20


def test_the_first_pytest_line_is_the_whole_test_command():
    line = next(line for line in README.splitlines() if "-m pytest" in line)
    assert line.strip().removeprefix("$ ").startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert line.endswith("-m pytest")


@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_after_load_pruned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks("python") if "load_pruned" in block)
    names = run(code, epochs=1)
    shapes = [{name: tensor.shape for name, tensor in names[key].state_dict().items()} for key in ("small", "model")]
    assert shapes[0] == shapes[1]
    assert sum(tensor.numel() for tensor in names["small"].parameters()) < 10_000
    assert any(
        not torch.equal(value, names["model"].state_dict()[key]) for key, value in names["small"].state_dict().items()
    )


@pytest.mark.filterwarnings("ignore")
def test_a_student_learns_where_its_teacher_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = (block for block in blocks("python") if "AttentionTransfer" in block)
    code = code.replace("callbacks=[DistillationTeacher", "callbacks=[callback := DistillationTeacher")
    names = run(code, epochs=1)
    logged = names["callback"].losses.keys()
    assert logged == {"soft", "looks"}
    assert not any("teacher" in key for key in names["student"].state_dict())


@pytest.mark.filterwarnings("ignore")
def test_channels_are_pruned_after_a_group_lasso(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks("python") if "GroupLasso" in block)
    names = run(code, epochs=1)
    assert names["prune"].sparsity == pytest.approx(0.5, abs=0.03)


@pytest.mark.filterwarnings("ignore")
def test_a_supernet_is_searched_and_extracted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks("python") if "NASSupernet" in block)
    names = run(code, epochs=1)
    assert names["search"].result.pick.cost <= 1.5e6
    assert not any("_candidates" in key for key in names["subnet"].state_dict())
    assert list(tmp_path.rglob("nas_pick.ckpt"))


MINE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Module(LightningModule):
    def __init__(self, width=8, lr=0.01):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        print("lr", self.lr)
        return torch.optim.Adam(self.parameters(), self.lr)


class Data(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16)

    val_dataloader = test_dataloader = train_dataloader


if __name__ == "__main__":
    module, settings = Module(), {"max_epochs": 4, "accelerator": "cpu", "callbacks": []}
    torch.save({"state_dict": Module().state_dict()}, "teacher.ckpt")
    trainer = Trainer(**settings)
    trainer.fit(module, Data())
    print([type(callback).__name__ for callback in trainer.callbacks], module.net[0].out_features)
"""


def python(*words, folder, **environment):
    """Run Python in a project's folder, which nothing but the folder itself leads to."""
    (folder / "my.py").write_text(MINE)
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ones_own_module_and_data_are_compressed_with_learning_rates_of_a_stages_own(tmp_path):
    (command,) = blocks("sh")
    program, *words = command.replace("\\\n", " ").split()
    assert program == "lightning-optim"
    quick = [f"recipe.stages.{name}.trainer.max_epochs=2" for name in ("base", "prune", "distil", "qat")]
    printed = python(
        "-m", "lightning_optim", *words, *quick, "latency_seconds=0.1", "hydra.run.dir=run", folder=tmp_path
    )
    assert (tmp_path / "run" / "model.onnx").is_file()
    rates = [line for line in printed.splitlines() if line.startswith("lr ")]
    assert {"lr 0.01", "lr 0.001", "lr 0.0001"} == set(rates)


def test_the_file_of_callbacks_serves_a_script_as_it_is(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "callbacks.yaml").write_text(text)
    printed = python("my.py", folder=tmp_path, LIGHTNING_OPTIM="callbacks.yaml").splitlines()[-1]
    assert "'PruningScheduler', 'DistillationTeacher'" in printed
    assert printed.endswith(" 4")
