"""Channels under a budget, in a fit."""

from dataclasses import dataclass
from typing import final

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import lightning_optim.cost.operator_times
from lightning_optim import PruningScheduler, Window
from lightning_optim.cost import Engine, Latency, Parameters, count_macs, count_parameters
from lightning_optim.demo import ResidualNet
from lightning_optim.errors import ShrinkError
from lightning_optim.pruning import Budget, Channel
from lightning_optim.schedule import Constant, Iterative
from support import quiet

IMAGE = torch.zeros(1, 1, 8, 8)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = ResidualNet(widths=(16, 32), num_classes=3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def loader():
    # Every batch is the same: a plain loader does not find its place again in the middle of an epoch.
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1)
    return DataLoader(TensorDataset(images, torch.arange(4).repeat(4) % 3), 4)


def fit(*callbacks, ckpt_path=None, **settings):
    torch.manual_seed(0)
    module = Module()
    quiet(*callbacks, **{"max_epochs": 2} | settings).fit(module, loader(), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize(
    ("cost", "count"),
    [(None, lambda net: count_macs(net, (IMAGE,))), (Parameters(), count_parameters)],
    ids=["macs", "parameters"],
)
def test_the_network_that_is_left_costs_what_the_schedule_allows(cost, count):
    allocation = Budget() if cost is None else Budget(cost=cost)
    schedule = Iterative(end=0.6, rounds=2)
    module = fit(PruningScheduler(schedule=schedule, structure=Channel(), allocation=allocation))
    assert 0.37 < count(module.net) / count(ResidualNet(widths=(16, 32), num_classes=3)) <= 0.4


@final
@dataclass(frozen=True)
class Slow(Engine):
    """A machine on which small networks take longer than their share of the work."""

    def __call__(self, network, args, kwargs):
        return 1e-6 * (1e-3 * count_macs(network, args, kwargs)) ** 0.7


def counted(call, rounds=11):
    """A clock for single operators that goes by the work done, not by what else the machine does."""
    with FlopCounterMode(display=False) as counter:
        call()
    return 1e-9 * counter.get_total_flops() / 2


def test_a_measured_budget_is_kept_by_the_network_that_is_left(monkeypatch):
    monkeypatch.setattr(lightning_optim.cost.operator_times, "time_call", counted)
    allocation = Budget(cost=Latency(engine=Slow()))
    module = fit(PruningScheduler(schedule=Constant(value=0.5), structure=Channel(), allocation=allocation))
    whole = ResidualNet(widths=(16, 32), num_classes=3)
    macs = [count_macs(net, (IMAGE,)) for net in (module.net, whole)]
    assert macs[0] / macs[1] < 0.45  # half of the work would not do
    assert 0.4 < Slow()(module.net, (IMAGE,), {}) / Slow()(whole, (IMAGE,), {}) < 0.5 * 1.03


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_fit_under_a_budget_resumes_bit_equal(tmp_path, stop):
    def pruning():
        schedule = Iterative(end=0.6, rounds=2)
        return PruningScheduler(schedule=schedule, structure=Channel(), allocation=Budget(), window=Window(end=0.75))

    whole = fit(pruning())
    every = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=stop, save_top_k=-1, filename="{step}")
    fit(pruning(), every, enable_checkpointing=True)
    path = tmp_path / f"step={stop}.ckpt"
    torch.load(path, weights_only=True)
    resumed = fit(pruning(), ckpt_path=str(path))
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_last_budget_below_the_floor_is_refused_at_the_first_step():
    schedule = Iterative(end=0.99, rounds=3)
    with pytest.raises(ValueError, match=r"0\.01 of the original MACs is below the floor of"):
        fit(PruningScheduler(schedule=schedule, structure=Channel(), allocation=Budget(min_kept=0.5)))


def test_a_budget_counts_channels_and_not_weights():
    with pytest.raises(ValueError, match="choose the structure 'Channel'"):
        PruningScheduler(schedule=Constant(value=0.5), allocation=Budget())


@final
@dataclass(frozen=True)
class Broken(Engine):
    def __call__(self, network, args, kwargs):
        raise OSError("no such device")


def test_an_engine_that_fails_is_named_on_every_rank_alike():
    allocation = Budget(cost=Latency(engine=Broken()))
    with pytest.raises(ShrinkError, match="OSError: no such device"):
        fit(PruningScheduler(schedule=Constant(value=0.5), structure=Channel(), allocation=allocation))
