"""A compiled network stays compiled, however many pruning steps change what there is to compile."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Window
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Linear
from support import quiet, same

EPOCHS = 11  # a pruning step each but for the last; torch compiles a function eight times, and then no more


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).relu())


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), torch.ones(32, 5))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


class Counted:
    """A backend that counts the calls of what it has compiled."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.calls += 1
            return graph(*args)

        return run


def compile_wrapped(module, backend):
    module.net = torch.compile(module.net, backend=backend)
    return module


def compile_in_place(module, backend):
    module.net.compile(backend=backend)
    return module


def compile_whole(module, backend):
    return torch.compile(module, backend=backend)


def fit(structure, make=lambda module, backend: module):
    torch.compiler.reset()
    module, backend = Module(), Counted()
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=structure, network="net", window=Window(end=0.9))
    data = TensorDataset(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    trainer = quiet(callback, max_epochs=EPOCHS)
    trainer.fit(make(module, backend), DataLoader(data, 32))
    return [*module.parameters()], backend.calls


@pytest.mark.parametrize(
    ("structure", "make"),
    [
        (Channel(shrink="end"), compile_wrapped),
        (Channel(), compile_wrapped),
        (Channel(), compile_in_place),
        (Channel(), compile_whole),
    ],
)
def test_every_batch_of_a_compiled_network_runs_compiled(structure, make):
    plain, _ = fit(structure)
    weights, calls = fit(structure, make)
    assert same(plain, weights)
    assert calls >= EPOCHS
