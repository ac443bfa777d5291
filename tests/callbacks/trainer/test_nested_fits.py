"""A fit inside a fit, or before it, by Lightning's own finders: the fit that follows is as without them."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher, NASSupernet, PruningScheduler, QATFakeQuant, Targets
from lightning_optim.nas import ElasticWidth
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Linear
from support import quiet, same


class Small(LightningModule):
    def __init__(self, batch_size):
        super().__init__()
        self.batch_size, self.lr = batch_size, 0.01
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        self.example_input_array = torch.zeros(2, 6)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self):
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), self.batch_size)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


def teacher():
    torch.manual_seed(5)
    return nn.Linear(6, 3)


CALLBACKS = {
    "weights": lambda: PruningScheduler(schedule=Linear(end=0.5)),
    "channels": lambda: PruningScheduler(schedule=Linear(end=0.5), structure=Channel()),
    "distillation": lambda: DistillationTeacher(teacher=teacher()),
    "quantization": QATFakeQuant,
    "supernet": lambda: NASSupernet(space={"width": ElasticWidth(targets=Targets(exclude=["net.4"]))}),
}


def fitted(make, batch_size, *others, find=None):
    torch.manual_seed(0)
    module, callback = Small(batch_size), make()
    trainer = quiet(callback, *others, max_epochs=3)
    if find is not None:
        find(trainer, module)
    trainer.fit(module)
    assert module.batch_size == 8
    return dict(module.state_dict()), callback.state_dict()


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS.keys())
def test_a_batch_size_finder_changes_nothing_but_the_size(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finder = BatchSizeFinder(init_val=8, max_trials=1, steps_per_trial=2)
    assert same(fitted(make, 2, finder), fitted(make, 8))


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS.keys())
def test_a_tuner_before_the_fit_changes_nothing(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def find(trainer, module):
        Tuner(trainer).lr_find(module, num_training=5, update_attr=False)

    assert same(fitted(make, 8, find=find), fitted(make, 8))
