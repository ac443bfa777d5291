"""A module that a user saves whole is loaded where this package is not installed."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant
from lightning_optim.pruning import Channel, Wanda
from lightning_optim.schedule import Linear
from support import quiet

MODEL = """
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)
"""
READ = """
import pathlib, sys
sys.modules["lightning_optim"] = None
import torch
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
    module = torch.load(path, weights_only=False)
    x, expected = torch.load(str(path) + ".expected")
    assert module.eval().net(x).equal(expected), path
    print(path.name)
"""
CALLBACKS = {
    "weights": lambda: PruningScheduler(schedule=Linear(end=0.5), criterion=Wanda()),
    "channels": lambda: PruningScheduler(schedule=Linear(end=0.5), structure=Channel()),
    "distillation": lambda: DistillationTeacher(teacher=nn.Linear(6, 3)),
    "quantization": QATFakeQuant,
}


class Saver(Callback):
    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.save(f"{self.name}-{trainer.current_epoch}", pl_module)

    def save(self, name, module):
        x = torch.randn(2, 6)
        twin = copy.deepcopy(module)
        for kind, whole in (("module", module), ("copy", twin)):
            torch.save(whole, self.folder / f"{name}-{kind}.pt")
            torch.save([x, copy.deepcopy(module).eval().net(x).detach()], self.folder / f"{name}-{kind}.pt.expected")


def test_it_is_the_same_module_during_and_after_a_fit_under_each_callback(tmp_path, monkeypatch):
    (tmp_path / "a_model_of_the_users.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    model = pytest.importorskip("a_model_of_the_users")
    x = torch.randn(32, 6)
    for name, make in CALLBACKS.items():
        saver, module = Saver(tmp_path, name), model.Small()
        quiet(make(), saver, max_epochs=3).fit(module, DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 8))
        saver.save(f"{name}-after", module)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 32
