"""Layers that are frozen at first join the targets once they are trained, and what was pruned stays pruned."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.callbacks.pruning.targeted import targeted_layers
from lightning_optim.errors import TargetError
from lightning_optim.pruning import (
    SNIP,
    BatchNormScale,
    Channel,
    MeanActivation,
    Movement,
    Neuron,
    Taylor,
    Wanda,
)
from lightning_optim.schedule import Constant, Linear
from support import quiet, same

EPOCHS, UNFROZEN = 8, 3


def layers(width, hidden, classes):
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes))


class Module(LightningModule):
    """A backbone and a head; who unfreezes the backbone is the test's affair."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = layers(4, 8, 6), layers(6, 4, 3)

    def forward(self, x):
        return self.head(self.backbone(x).relu())

    def training_step(self, batch, batch_idx):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        return F.cross_entropy(self(x), x[:, 0].gt(0).long())

    def configure_optimizers(self):
        return torch.optim.Adam([parameter for parameter in self.parameters() if parameter.requires_grad], 0.01)


class UnfreezesItself(Module):
    """Its optimizer has all parameters from the start; the epochs in which the backbone is trained are given."""

    def __init__(self, *epochs):
        super().__init__()
        self.epochs = epochs

    def on_train_epoch_start(self):
        self.backbone.requires_grad_(self.current_epoch in self.epochs)

    def configure_optimizers(self):
        self.backbone.requires_grad_(requires_grad=False)
        return torch.optim.Adam(self.parameters(), 0.01)


def fit(module, *callbacks, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, max_epochs=EPOCHS, **settings)
    trainer.fit(module, DataLoader(torch.arange(4)), ckpt_path=ckpt_path)
    return module


def pruning(**settings):
    return PruningScheduler(**{"schedule": Linear(end=0.5), "window": Window(end=0.75, every=0.25)} | settings)


def share(layer):
    return float((layer.weight == 0).float().mean())


LAYERS = ("backbone.0", "backbone.3", "head.0", "head.3")


@pytest.mark.parametrize("criterion", [None, Taylor(), Movement(), SNIP(), Wanda()], ids=str)
def test_an_unfrozen_backbone_is_pruned_with_the_rest(criterion):
    module = fit(Module(), pruning(criterion=criterion), BackboneFinetuning(UNFROZEN))
    assert [share(module.get_submodule(name)) for name in LAYERS] == [0.5] * 4


@pytest.mark.parametrize("structure", [Channel(), Channel(shrink="end")], ids=str)
@pytest.mark.parametrize("criterion", [None, Taylor(), Movement(), MeanActivation(), BatchNormScale()], ids=str)
def test_channels_of_an_unfrozen_backbone_are_removed(criterion, structure):
    targets = Targets(exclude=["backbone.3"]) if isinstance(criterion, BatchNormScale) else None
    callback = pruning(criterion=criterion, structure=structure, targets=targets)
    module = fit(Module(), callback, BackboneFinetuning(UNFROZEN))
    assert (module.backbone[0].out_features, module.head[0].out_features) == (4, 2)


def test_layers_that_join_after_the_last_step_of_the_schedule_are_pruned():
    module = fit(Module(), pruning(schedule=Constant(value=0.5)), BackboneFinetuning(UNFROZEN))
    assert [share(module.get_submodule(name)) for name in LAYERS] == [0.5] * 4


def test_pruning_waits_for_what_lightning_unfreezes_and_says_so_once():
    callback = pruning(structure=Neuron(), targets=Targets(include=["backbone.*"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = fit(Module(), callback, BackboneFinetuning(UNFROZEN))
    said = [str(warning.message) for warning in caught if "waits until it is trained" in str(warning.message)]
    assert said == [
        "nothing can be pruned yet, since 'backbone.0', 'backbone.3' are frozen: pruning waits until it is trained"
    ]
    assert share(module.backbone[0]) == 0.5


def test_nothing_to_prune_but_frozen_layers_is_refused_where_nothing_unfreezes_them():
    module = UnfreezesItself(3, 4, 5, 6, 7)
    with pytest.raises(TargetError, match=r"'backbone.0', 'backbone.3' are frozen: unfreeze before window.begin"):
        fit(module, pruning(targets=Targets(include=["backbone.*"])))
    assert share(module.backbone[0]) == 0.0


def test_what_no_optimizer_trains_is_left_with_one_warning():
    class Forgets(Module):
        def on_train_epoch_start(self):
            self.backbone.requires_grad_(self.current_epoch >= UNFROZEN)

    module = Forgets()
    module.backbone.requires_grad_(requires_grad=False)
    with pytest.warns(
        UserWarning, match=r"no optimizer trains 'backbone.0', 'backbone.3'.*until then it is not"
    ) as said:
        fit(module, pruning(criterion=Taylor()))
    assert sum("no optimizer trains" in str(warning.message) for warning in said) == 1
    assert [share(module.get_submodule(name)) for name in LAYERS] == [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("criterion", [None, Taylor()], ids=str)
@pytest.mark.parametrize("structure", [None, Channel()], ids=str)
def test_layers_that_are_frozen_again_stay_pruned_and_resume_bit_equal(criterion, structure, tmp_path):
    def make():
        return UnfreezesItself(1, 2, 6, 7), pruning(criterion=criterion, structure=structure)

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    module, callback = make()
    fit(module, callback, saver, enable_checkpointing=True)
    if structure is None:
        assert [share(module.get_submodule(name)) for name in LAYERS] == [0.5] * 4
    else:
        assert (module.backbone[0].out_features, module.head[0].out_features) == (4, 2)
    for epoch in (0, 2, 4):
        resumed, callback = make()
        fit(resumed, callback, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert same(resumed.state_dict(), module.state_dict()), epoch


def test_a_network_without_layers_of_ones_own_says_what_else_it_has():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.scale, self.head = nn.Embedding(5, 3), Scale(), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

    module = LightningModule()
    module.net = Tied()
    with pytest.raises(TargetError, match=r"net\.head; of its other layers \(Scale\) none is a convolution"):
        targeted_layers(module, Targets(), "net")
