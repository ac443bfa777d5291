"""Weights that the user's code makes, replaces or moves behind the trainer's back: zeros that stay, or a clear word."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import NASSupernet, PruningScheduler, QATFakeQuant, Targets, Window
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.nas import ElasticWidth, Selection
from lightning_optim.pruning import Channel, RandomRegrowth, Weight
from lightning_optim.schedule import Linear
from support import quiet


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def fit(module, *callbacks, structure=None):
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=structure, network="net", window=Window(end=0.5))
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, torch.arange(32) % 4), 8)
    quiet(*(callbacks or [callback]), max_epochs=4).fit(module, data)
    return callback


def zeros(module):
    weights = [module.net[0].weight, module.net[2].weight]
    return sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)


class OwnOptimizer(Net):
    """Steps an optimizer that the trainer does not know."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        self.own = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def training_step(self, batch, batch_idx):
        self.own.zero_grad()
        super().training_step(batch, batch_idx).backward()
        self.own.step()


def test_masks_hold_under_an_optimizer_that_the_trainer_does_not_know_and_no_channel_is_cut():
    module = OwnOptimizer()
    callback = fit(module)
    assert callback.sparsity == zeros(module) == 0.5
    with pytest.raises(ShrinkError, match=r"no optimizer of the trainer trains the network.*configure_optimizers"):
        fit(OwnOptimizer(), structure=Channel())
    regrowing = PruningScheduler(schedule=Linear(end=0.5), regrow=RandomRegrowth(), window=Window(end=0.5, every=0.1))
    with pytest.raises(ValueError, match="regrow acts before the steps of the trainer's optimizers, but none"):
        fit(OwnOptimizer(), regrowing)


class Replacing(Net):
    """Puts another parameter in the place of a weight once some of that is pruned, as a loader of weights may."""

    def on_train_epoch_start(self):
        if self.current_epoch == 3:
            self.net[0].weight = nn.Parameter(torch.randn(32, 16))
            self.trainer.optimizers = [torch.optim.SGD(self.parameters(), 0.1)]


def test_masks_follow_a_weight_that_is_replaced():
    module = Replacing()
    callback = fit(module)
    assert callback.sparsity == zeros(module) == 0.5


class NewHead(Net):
    def on_train_epoch_start(self):
        if self.current_epoch == 3:
            self.net[2] = nn.Linear(32, 4)
            self.trainer.optimizers = [torch.optim.SGD(self.parameters(), 0.1)]


class Shifted(Net):
    """Moves weights where no optimizer steps."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.001)


@pytest.mark.parametrize("make", [NewHead, Shifted])
def test_a_fit_ends_with_the_zeros_that_it_reports(make):
    module = make()
    callback = fit(module)
    assert callback.sparsity == zeros(module) == 0.5


class Square(nn.Module):
    def forward(self, weight):
        return weight * weight.abs()


class Unfolding(Net):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        parametrize.register_parametrization(self.net[0], "weight", Square())

    def on_train_epoch_start(self):
        if self.current_epoch == self.epoch:
            parametrize.remove_parametrizations(self.net[0], "weight")
            self.trainer.optimizers = [torch.optim.SGD(self.parameters(), 0.1)]


@pytest.mark.parametrize("structure", [Weight(), Channel()])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_parametrization_that_is_removed_once_weights_are_pruned_is_told(structure, epoch):
    with pytest.raises(TargetError, match="'0' is parametrized otherwise than when weights were pruned there"):
        fit(Unfolding(epoch), structure=structure)


def test_one_that_is_removed_before_pruning_begins_is_not():
    module = Unfolding(0)
    assert fit(module).sparsity == zeros(module) == 0.5


def test_lightnings_own_pruning_beside_is_told():
    callback = PruningScheduler(schedule=Linear(end=0.5), network="net", window=Window(end=0.5))
    with pytest.raises(TargetError, match="parametrized otherwise"):
        fit(Net(), callback, ModelPruning("l1_unstructured", amount=0.1))


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4))


@pytest.mark.parametrize(
    "callback",
    [
        PruningScheduler(schedule=Linear(end=0.5), structure=Channel()),
        PruningScheduler(schedule=Linear(end=0.5)),
        QATFakeQuant(),
        NASSupernet(
            space={"width": ElasticWidth(targets=Targets(include=["net.0"]), fractions=[0.5, 1.0])},
            selection=Selection(monitor="val/accuracy"),
            search_at="call",
            example=torch.zeros(1, 16),
        ),
    ],
    ids=["channels", "weights", "quantization", "search"],
)
def test_layers_that_have_no_weights_yet_are_named(callback):
    with pytest.raises(TargetError, match=r"'net.0' \(LazyLinear\) has no weights yet: run the module once on a batch"):
        fit(Lazy(), callback)


def test_once_they_have_they_are_layers_like_others():
    module = Lazy()
    module(torch.zeros(1, 16))
    callback = fit(module, structure=Channel())
    assert (callback.sparsity, module.net[0].out_features) == (0.5, 16)


class Scripted(Net):
    def __init__(self):
        super().__init__()
        self.net = torch.jit.script(self.net)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # a FutureWarning since torch 2.14
@pytest.mark.parametrize("callback", [PruningScheduler(schedule=Linear(end=0.5)), QATFakeQuant()], ids=["prune", "qat"])
def test_a_scripted_network_is_refused_in_words(callback):
    with pytest.raises(TargetError, match=r"none of them a Conv|nothing can be quantized in RecursiveScriptModule"):
        fit(Scripted(), callback)
