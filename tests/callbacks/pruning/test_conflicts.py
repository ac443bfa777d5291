"""Two pruning callbacks in one Trainer: apart they go together, and what would go wrong is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.errors import ShrinkError
from lightning_optim.pruning import Channel, Head, MetricDrop, Taylor
from lightning_optim.schedule import Steps
from support import quiet, same


class Module(LightningModule):
    """Two blocks in a row, each a transformer layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True)
        last = [nn.Linear(24, 6), nn.Linear(6, 4), nn.Linear(4, 3)]
        self.net = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), *last)

    def training_step(self, batch, batch_idx):
        x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(batch_idx))
        return F.cross_entropy(self.net(x), x[:, 0, 0].gt(0).long())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def pruning(name, *include, **settings):
    plain = {"schedule": Steps(values=[0.25, 0.5]), "window": Window(end=2, unit="step"), "structure": Channel()}
    return PruningScheduler(name=name, targets=Targets(include=include), **plain | settings)


def fit(module, *callbacks, batches=4, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, max_epochs=1, **settings)
    trainer.fit(module, DataLoader(torch.arange(batches)), ckpt_path=ckpt_path)
    return trainer


def refused(match, *callbacks):
    module = Module()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ShrinkError, match=match):
        fit(module, *callbacks)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_heads_and_channels_that_share_no_tensor_shrink_side_by_side():
    module = Module()
    heads = pruning("heads", "*.out_proj", structure=Head())
    fit(module, heads, pruning("channels", "*.linear1"))
    layers = module.net[0].layers
    assert [(layer.self_attn.num_heads, layer.linear1.out_features) for layer in layers] == [(2, 8), (2, 8)]


def test_a_weight_may_lose_rows_to_one_and_columns_to_another_and_resumes_bit_equal(tmp_path):
    def callbacks():
        return pruning("columns", "net.2"), pruning("rows", "net.3")

    whole = Module()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(whole, *callbacks(), saver, enable_checkpointing=True)
    assert [tuple(layer.weight.shape) for layer in whole.net[2:]] == [(3, 24), (2, 3), (3, 2)]
    for step in (1, 2, 3):
        resumed = Module()
        fit(resumed, *callbacks(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert same(resumed.state_dict(), whole.state_dict()), step


def test_what_is_gathered_of_a_weight_needs_it_whole():
    module = Module()
    with pytest.raises(ShrinkError, match=r"two PruningSchedulers prune '3\.weight'"):
        fit(module, pruning("columns", "net.2"), pruning("rows", "net.3", criterion=Taylor()))
    assert module.net[2].out_features == 6


@pytest.mark.parametrize("shrink", ["update", "never"])
def test_the_same_layer_is_refused_before_anything_changed(shrink):
    refused(
        r"two PruningSchedulers prune '2'",
        pruning("one", "net.2"),
        pruning("other", "net.2", structure=Channel(shrink=shrink)),
    )


def test_layers_that_are_coupled_are_refused_before_the_first_cut():
    module = Module()
    with pytest.raises(ShrinkError, match=r"two PruningSchedulers prune '3\.weight'"):
        fit(module, pruning("one", "net.2"), weights("net.3"))
    assert module.net[2].out_features == 6


def weights(*include):
    return pruning("weights", *include, structure=None)


def test_a_state_to_go_back_to_beside_a_shrink_is_refused():
    until = MetricDrop(monitor="val/loss", mode="min", max_drop=1.0)
    refused(
        "holds earlier states", pruning("one", "net.2"), pruning("two", "net.0*linear1", structure=None, until=until)
    )


def test_masks_may_share_layers():
    module = Module()
    fit(module, weights("net.2"), pruning("rows", "net.2", structure=Channel(shrink="never")))
    assert int((module.net[2].weight == 0).sum()) >= 72
