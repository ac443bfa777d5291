"""Residual branches that leave the network in the middle of a fit."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Window
from lightning_optim.demo import VisionTransformer
from lightning_optim.pruning import Layer, MetricDrop, Wanda, load_pruned
from lightning_optim.schedule import Steps
from lightning_optim.surgery.bypass import Bypass
from support import ReadsItsWeight, quiet


class Module(LightningModule):
    def __init__(self, net=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = net or VisionTransformer(dim=16, depth=2, hidden=32, num_heads=4)

    def training_step(self, batch, batch_idx):
        x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(batch_idx))
        return F.cross_entropy(self.net(x), torch.arange(4))

    def validation_step(self, batch, batch_idx):
        self.log("val/steps", float(self.global_step))  # as a loss that only rises

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Spy(Callback):
    """Parameters of the optimizer, and the moments of one that stays, before and after each step."""

    def __init__(self):
        self.sizes, self.moments = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        self.sizes.append(sum(p.numel() for group in optimizer.param_groups for p in group["params"]))
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(p) for p in pl_module.parameters()
        }
        state = optimizer.state[pl_module.net.head.weight]
        self.moments.append(int(state["step"]) if state else 0)


def pruning(**settings):
    plain = {"schedule": Steps(values=[0.25, 0.5]), "window": Window(end=2, unit="step"), "structure": Layer()}
    return PruningScheduler(**plain | settings)


def fit(module, *callbacks, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, **{"max_epochs": 1} | settings)
    data = DataLoader(torch.arange(6))
    trainer.fit(module, data, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


def bypasses(module):
    return [name for name, part in module.named_modules() if isinstance(part, Bypass)]


def test_the_optimizer_goes_on_with_what_is_left():
    module, spy = Module(), Spy()
    full = sum(p.numel() for p in module.parameters())
    fit(module, pruning(), spy)
    left = sum(p.numel() for p in module.parameters())
    assert bypasses(module)
    assert spy.sizes == [full] + [left] * 5
    assert spy.moments == list(range(6))


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_fit_that_was_cut_short_goes_on_bit_equal(tmp_path, stop):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    module = Module()
    fit(module, pruning(), saver, enable_checkpointing=True)
    resumed = Module()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    fit(resumed, pruning(), ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert bypasses(resumed) == bypasses(module) != []
    assert resumed.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in resumed.state_dict().items())
    loaded, images = load_pruned(Module().eval(), tmp_path / "step=6.ckpt"), torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded.net(images), module.eval().net(images))
    network = load_pruned(Module().net.eval(), tmp_path / "step=6.ckpt")
    assert torch.equal(network(images), module.net(images))


def test_activations_are_watched_on_where_layers_are_left():
    module = Module()
    fit(module, pruning(criterion=Wanda(within="layer")))
    assert bypasses(module)


def test_branches_that_went_too_far_come_back_whole():
    module = Module()
    until = MetricDrop(monitor="val/steps", mode="min", max_drop=0.0)
    fit(module, pruning(until=until), val_check_interval=1)
    assert not bypasses(module)
    assert all(parameter.any() for name, parameter in module.named_parameters() if name.endswith("weight"))


def test_a_branch_that_cannot_be_taken_out_stays_masked_with_a_warning():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), ReadsItsWeight(8), ReadsItsWeight(8), nn.Linear(8, 4))
    module = Module(net)
    with pytest.warns(UserWarning, match=r"the branch of 2\.layer\.weight stays, masked|the branch of 3\.layer"):
        fit(module, pruning())
    assert not bypasses(module)
    assert sum(not block.layer.weight.any() for block in net[2:4]) == 1


def test_layers_are_removed_at_the_end_or_never():
    with pytest.raises(ValueError, match="'never' or 'end' for layers, got 'update'"):
        Layer(shrink="update")
    module = Module()
    fit(module, pruning(structure=Layer(shrink="never")))
    assert not bypasses(module)
