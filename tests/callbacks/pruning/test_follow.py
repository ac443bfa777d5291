"""Copies of the network that the user keeps, masked and cut with it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Window
from lightning_optim.errors import TargetError
from lightning_optim.pruning import Channel, Rewind
from lightning_optim.schedule import Linear
from support import quiet, same


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))


class Momentum(LightningModule):
    """Keeps a momentum copy of its network, as a self-supervised method does."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.slow = copy.deepcopy(self.net).requires_grad_(requires_grad=False)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), self.slow(batch[0]) + 1.0)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for fast, slow in zip(self.net.parameters(), self.slow.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9)


def loader():
    return DataLoader(TensorDataset(torch.randn(32, 16, generator=torch.Generator().manual_seed(0))), 32)


def scheduler(module, structure, **settings):
    window = Window(end=0.75)
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=structure, network="net", window=window, **settings)
    callback.follow(module.slow)
    return callback


@pytest.mark.parametrize("structure", [Channel(), Channel(shrink="end"), Channel(shrink="never"), None])
def test_a_momentum_copy_has_the_networks_shape_and_zeros_and_resumes_with_it(structure, tmp_path):
    module = Momentum()
    quiet(scheduler(module, structure), max_epochs=8).fit(module, loader())
    assert [p.shape for p in module.slow.parameters()] == [p.shape for p in module.net.parameters()]
    if structure is not None and structure.shrink != "never":
        assert module.slow[0].out_features == 16
    pairs = zip(module.net.parameters(), module.slow.parameters(), strict=True)
    assert all(bool((slow[fast == 0] == 0).all()) for fast, slow in pairs)
    half = Momentum()
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    quiet(scheduler(half, structure), saver, max_epochs=8, enable_checkpointing=True).fit(half, loader())
    resumed = Momentum()
    path = tmp_path / "epoch=3.ckpt"
    quiet(scheduler(resumed, structure), max_epochs=8).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    assert same(dict(module.state_dict()), dict(resumed.state_dict()))


def test_what_is_no_copy_is_refused_before_anything_has_changed():
    module = Momentum()
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(), network="net")
    callback.follow(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5)))
    with pytest.raises(TargetError, match=r"'0.weight' is \[32, 16\] there and \[8, 16\] here"):
        quiet(callback, max_epochs=4).fit(module, loader())
    assert module.net[0].out_features == 32
    with pytest.raises(ValueError, match="rewind goes back to shapes"):
        scheduler(module, None, rewind=Rewind(step=1))
