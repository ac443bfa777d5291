"""What a user may have beside pruning. ``tests/contract`` runs EMA, accumulation, bf16, clipping, ``torch.compile``,
manual optimization and every stage after a fit over each callback; here stands the rest."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler
from lightning_optim.pruning import Channel
from lightning_optim.schedule import Iterative
from support import quiet

STRUCTURES = {"weight": None, "shrink": Channel(), "mask": Channel(shrink="never")}


class Net(nn.Module):
    """A body whose first and last linear layer share a weight, and buffers with the names of masks."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.up, self.norm, self.down = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("attn_mask", torch.ones(8))
        self.up.register_buffer("weight_mask", torch.ones(16))

    def forward(self, x):
        x = self.table(x).mean(1) * self.attn_mask
        return self.out(x + self.down(self.norm(self.up(x)).relu()))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()

    def training_step(self, batch, batch_idx):
        x = torch.randint(20, (8, 4), generator=torch.Generator().manual_seed(10 * self.current_epoch + batch_idx))
        return F.cross_entropy(self.net(x), x[:, 0])

    def validation_step(self, batch, batch_idx):
        x = torch.randint(20, (8, 4), generator=torch.Generator().manual_seed(batch_idx))
        self.log("val/loss", F.cross_entropy(self.net(x), x[:, 0]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def trainer(*callbacks, **settings):
    return quiet(*callbacks, **{"max_epochs": 4} | settings)


def loader():
    return DataLoader(torch.arange(4))


def check(module, structure):
    """Half of the inner channels, or of the weights that are not shared with the table, is gone."""
    net = module.net
    assert net.out.weight is net.table.weight
    if structure is None:
        assert (net.table.weight != 0).all()
        gone = [int((layer.weight == 0).sum()) for layer in (net.up, net.down)]
        assert gone == [64, 64]
    elif structure.shrink == "never":
        assert int((~net.up.weight.bool().any(1)).sum()) == 8
    else:
        assert (net.up.out_features, net.norm.num_features, net.down.in_features) == (8, 8, 8)
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES.keys())
def structure(request):
    return request.param


def scheduler(structure):
    return PruningScheduler(schedule=Iterative(end=0.5, rounds=2), structure=structure)


def test_tied_weights_and_buffers_named_as_masks_stay(structure, tmp_path):
    module, saver = Module(), ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(scheduler(structure), saver, enable_checkpointing=True).fit(module, loader())
    check(module, structure)
    assert module.net.attn_mask.eq(1).all()
    assert len(module.net.up.weight_mask) in (8, 16)
    saved = torch.load(tmp_path / "step=16.ckpt", weights_only=True)["state_dict"]
    assert {name for name in saved if "load_pruned" not in name} == Module().state_dict().keys()
    resumed = Module()
    trainer(scheduler(structure)).fit(resumed, loader(), ckpt_path=tmp_path / "step=7.ckpt")
    expected = module.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.state_dict().items())


def test_stochastic_weight_averaging(structure):
    module = Module()
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    trainer(averaging, scheduler(structure)).fit(module, loader())
    check(module, structure)


def test_exponential_averaging(structure):
    module = Module()
    trainer(EMAWeightAveraging(decay=0.5), scheduler(structure)).fit(module, loader())
    check(module, structure)


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_profilers(structure, profiler, tmp_path):
    module = Module()
    trainer(scheduler(structure), profiler=profiler, default_root_dir=tmp_path).fit(module, loader())
    check(module, structure)


def test_validation_before_and_after_a_fit_and_a_second_fit(structure):
    module = Module()
    one = trainer(scheduler(structure))
    one.validate(module, loader(), verbose=False)
    one.fit(module, loader(), loader())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first, second = (one.validate(module, loader(), verbose=False)[0] for _ in range(2))
    assert first == second
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    trainer(max_epochs=1).fit(module, loader())  # the shrunk module is a module like any other
    check_shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    assert check_shapes == [tuple(before[name].shape) for name, _ in module.named_parameters()]
