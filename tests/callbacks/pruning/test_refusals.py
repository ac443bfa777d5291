"""What cannot be pruned is told before anything has changed, or falls back to masks and says so."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Targets
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.pruning import Channel, Head, Layer, MeanActivation, SemiStructured, Taylor
from lightning_optim.schedule import Constant, Iterative
from support import quiet


class Branching(nn.Module):
    """Takes another way for other data: no graph can hold it."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.one(x).relu()
        if x.sum() > 1000:
            x = -x
        return self.head(self.two(x).relu())


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(self.embedding(x).relu()).relu())


class Module(LightningModule):
    def __init__(self, net):
        super().__init__()
        torch.manual_seed(0)
        self.net = net()

    def training_step(self, batch, batch_idx):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * self.current_epoch + batch_idx))
        return F.cross_entropy(self.net(x), x[:, :3].argmax(1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def fit(module, *callbacks, ckpt_path=None, **settings):
    trainer = quiet(*callbacks, **{"max_epochs": 2} | settings)
    trainer.fit(module, DataLoader(torch.arange(4)), ckpt_path=ckpt_path)
    return trainer


def scheduler(**keywords):
    return PruningScheduler(**{"schedule": Constant(value=0.5)} | keywords)


def check_refused(module, pruning, kind, words, **settings):
    before = copy.deepcopy(dict(module.state_dict()))
    with pytest.raises(kind, match=words):
        fit(module, pruning, max_steps=1, **settings)
    now = module.state_dict()
    assert before.keys() == now.keys()
    return before, now


def check_unchanged(before, now):
    assert all(torch.equal(before[name], value) for name, value in now.items())


# Targets.


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (Targets(include=["net.nowhere"]), "did you mean"),
        (Targets(include=["net.body"]), "frozen"),
        (Targets(include=["net.head"]), "tied"),
    ],
    ids=["nothing", "frozen", "tied"],
)
def test_targets_that_cannot_be_pruned_are_refused(targets, words):
    module = Module(Plain)
    module.net.body.requires_grad_(requires_grad=False)
    module.mirror = nn.Linear(6, 3)
    module.mirror.weight = module.net.head.weight
    check_unchanged(*check_refused(module, scheduler(targets=targets, network="net"), TargetError, words))


def test_layers_that_share_a_weight_are_pruned_once():
    module = Module(Plain)
    module.net.body.weight = nn.Parameter(module.net.body.weight.detach().clone())
    twin = nn.Linear(6, 6)
    twin.weight = module.net.body.weight
    module.net.twin = twin
    fit(module, scheduler())
    assert int((module.net.body.weight == 0).sum()) == 18


# Structures.


def test_channels_that_are_the_output_cannot_go():
    module = Module(Plain)
    pruning = scheduler(structure=Channel(), targets=Targets(include=["net.head"]))
    with pytest.raises(TargetError, match="none of the 1 targeted layers"):
        fit(module, pruning)
    assert module.net.head.out_features == 3
    assert (module.net.head.weight != 0).all()


def test_a_pattern_that_a_layer_cannot_have_is_refused():
    pruning = scheduler(structure=SemiStructured(keep=2, out_of=5))
    module = Module(Plain)
    with pytest.raises(ValueError, match="no targeted layer can be 2:5 sparse"):
        fit(module, pruning)
    assert all((parameter != 0).all() for parameter in module.parameters() if parameter.dim() > 1)


# Criteria.


def test_a_criterion_that_needs_gradients_is_refused_where_there_are_none():
    module = Module(Plain)
    pruning = scheduler(criterion=Taylor(), targets=Targets(include=["net.body"]))
    module.configure_optimizers = lambda: torch.optim.AdamW(module.net.head.parameters(), 0.01)
    with pytest.raises(ValueError, match="gradient"):
        fit(module, pruning)
    assert (module.net.body.weight != 0).all()


@pytest.mark.parametrize("structure", [None, Channel()], ids=["weight", "channel"])
def test_scores_that_are_no_numbers_are_refused(structure):
    module = Module(Plain)
    with torch.no_grad():
        module.net.body.weight[0, 0] = torch.nan
    pruning = scheduler(structure=structure)
    with pytest.raises(ValueError, match="NaN"):
        fit(module, pruning)
    assert all((parameter != 0).all() for parameter in module.parameters())
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [
        tuple(parameter.shape) for parameter in Module(Plain).parameters()
    ]


# Strategies.


def test_nothing_shrinks_under_spawned_processes():
    trainer = Trainer(accelerator="cpu", strategy="ddp_spawn", devices=2, logger=False, enable_checkpointing=False)
    with pytest.raises(ShrinkError, match="use strategy='ddp'"):
        scheduler(structure=Channel()).setup(trainer, Module(Plain), "fit")
    scheduler(structure=Channel(shrink="never")).setup(trainer, Module(Plain), "fit")
    scheduler().setup(trainer, Module(Plain), "fit")


def test_channels_are_refused_under_sharded_strategies():
    class ModelParallelStrategy:
        launcher = None

    class Stub:
        strategy, callbacks = ModelParallelStrategy(), ()

    with pytest.raises(ShrinkError, match="channels cannot be used under ModelParallelStrategy"):
        scheduler(structure=Channel()).setup(Stub(), Module(Plain), "fit")


# Models that cannot be captured.


def masked_rows(layer):
    return int((~layer.weight.bool().any(1)).sum())


@pytest.mark.parametrize("shrink", ["update", "end", "never"])
def test_a_model_that_cannot_be_captured_is_masked_with_a_warning(shrink):
    module = Module(Branching)
    pruning = scheduler(structure=Channel(shrink=shrink), schedule=Iterative(end=0.5, rounds=2))
    with pytest.warns(UserWarning, match="neurons are masked layer by layer and nothing shrinks; head stays whole"):
        fit(module, pruning)
    assert [masked_rows(layer) for layer in (module.net.one, module.net.two, module.net.head)] == [5, 4, 0]
    assert not module.net.one.bias[~module.net.one.weight.bool().any(1)].any()
    assert module.net.one.out_features == 10
    assert not pruning.cut


def test_a_masked_fit_that_cannot_be_captured_resumes_bit_equal(tmp_path):
    def pruning():
        return scheduler(structure=Channel(), schedule=Iterative(end=0.5, rounds=2))

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = Module(Branching)
    with pytest.warns(UserWarning, match="nothing shrinks"):
        fit(whole, pruning(), saver, enable_checkpointing=True)
    for step in (1, 2, 3, 5, 6):
        resumed = Module(Branching)
        fit(resumed, pruning(), ckpt_path=tmp_path / f"step={step}.ckpt")
        expected = whole.state_dict()
        assert all(torch.equal(expected[name], value) for name, value in resumed.state_dict().items()), step


@pytest.mark.parametrize("structure", [Head(), Head(shrink="never"), Layer(), Layer(shrink="never")])
def test_heads_and_branches_are_refused_where_they_are_not_known(structure):
    module = Module(Branching)
    with pytest.raises(ShrinkError, match="finds nothing to prune; choose structure 'Neuron'"):
        fit(module, scheduler(structure=structure))
    assert all((parameter != 0).all() for parameter in module.parameters() if parameter.dim() > 1)


def test_a_criterion_that_asks_the_readers_is_refused_where_they_are_not_known():
    module = Module(Branching)
    pruning = scheduler(structure=Channel(), criterion=MeanActivation())
    with pytest.raises(ShrinkError, match="'MeanActivation' must know what reads a channel"):
        fit(module, pruning)
    assert all((parameter != 0).all() for parameter in module.parameters() if parameter.dim() > 1)


class Preconditioned(torch.optim.SGD):
    """An optimizer whose state has a shape of its own."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                self.state[parameter]["factor"] = torch.eye(7)
        return loss


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Preconditioned])
@pytest.mark.parametrize("shrink", ["update", "end"])
def test_an_optimizer_that_cannot_follow_a_cut_is_refused_before_the_first_step(kind, shrink):
    module, before = Module(Plain), copy.deepcopy(Module(Plain).state_dict())
    module.configure_optimizers = lambda: kind(module.parameters(), 0.01)
    with pytest.raises(ShrinkError, match=rf"{kind.__name__}.*train with another optimizer, or mask"):
        fit(module, PruningScheduler(schedule=Constant(value=0.5), structure=Channel(shrink=shrink)))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Preconditioned])
def test_an_optimizer_that_cannot_follow_a_cut_may_train_what_is_only_masked(kind):
    module = Module(Plain)
    module.configure_optimizers = lambda: kind(module.parameters(), 0.01)
    fit(module, PruningScheduler(schedule=Constant(value=0.5), structure=Channel(shrink="never")))
    assert int((module.net.body.weight == 0).all(1).sum()) == 3
