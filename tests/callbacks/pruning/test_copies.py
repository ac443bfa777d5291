"""A network beside a copy of itself: what is counted and scored is the network that is trained."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.cost import count_macs
from lightning_optim.errors import TapError
from lightning_optim.pruning import BatchNormScale, Budget, Channel, MeanActivation, Taylor
from lightning_optim.schedule import Linear
from support import quiet, same

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


class Beside(LightningModule):
    """Trains one network and keeps its first state, in the order of registration that is asked for."""

    def __init__(self, order, *, is_frozen=True):
        super().__init__()
        held = {"net": network()}
        held["first"] = copy.deepcopy(held["net"]).requires_grad_(requires_grad=not is_frozen)
        for name in order:
            setattr(self, name, held[name])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.05)


def fit(module, **settings):
    how = {"schedule": Linear(end=0.5), "structure": Channel(), "window": Window(end=0.75)} | settings
    callback = PruningScheduler(**how)
    labels = torch.arange(32) % 4
    quiet(callback, max_epochs=4).fit(module, DataLoader(TensorDataset(IMAGES, labels), 16))
    return callback


@pytest.mark.parametrize("criterion", [MeanActivation(), BatchNormScale(), Taylor()])
@pytest.mark.parametrize("order", [("net", "first"), ("first", "net")])
def test_a_copy_that_is_not_called_changes_nothing(criterion, order):
    alone = Beside(("net",))
    fit(alone, criterion=criterion, network="")
    for is_frozen in (True, False):
        module = Beside(order, is_frozen=is_frozen)
        targets = None if is_frozen else Targets(include=["net.*"])
        callback = fit(module, criterion=criterion, network="", targets=targets)
        assert same(dict(module.net.state_dict()), dict(alone.net.state_dict()))
        assert same(dict(module.first.state_dict()), dict(network().state_dict()))
        assert callback.sparsity == 0.5
        assert (module.net[0].out_channels, module.net[3].out_channels) == (4, 8)


@pytest.mark.parametrize("criterion", [MeanActivation(), BatchNormScale()])
def test_a_copy_that_is_targeted_and_never_called_is_refused_with_what_to_do(criterion):
    with pytest.raises(TapError, match=r"no forward pass went through 'first.0', .* leave it out in targets.exclude"):
        fit(Beside(("net", "first"), is_frozen=False), criterion=criterion, network="")


class Frozen(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = network()[:6].requires_grad_(requires_grad=False)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, image):
        return self.head(self.backbone(image))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), 0.05)


def test_a_budget_over_a_frozen_backbone_is_of_the_whole_network_and_met_by_the_head():
    module, dense = Frozen(), Frozen()
    whole = count_macs(dense, (IMAGES[:1],))
    callback = fit(module, schedule=Linear(end=0.004), allocation=Budget(), network="")
    assert same([*module.backbone.parameters()], [*dense.backbone.parameters()])
    assert module.backbone[3].out_channels == 16
    left = count_macs(module, (IMAGES[:1],))
    assert 0.995 * whole < left <= 0.996 * whole
    assert callback.sparsity == 1 - module.head[2].out_features / 32
    with pytest.raises(
        ValueError, match=r"cost of the layers that are frozen or no targets.*train and target more layers"
    ):
        fit(Frozen(), schedule=Linear(end=0.05), allocation=Budget(), network="")
