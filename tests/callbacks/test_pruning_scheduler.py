from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.errors import TargetError
from lightning_optim.pruning import Channel, GlobalThreshold, MeanActivation
from lightning_optim.schedule import Constant, Iterative, Steps
from support import quiet

PRUNABLE = ("net.0", "net.3", "net.7")


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/score", float(self.current_epoch == 0))  # the first epoch always looks best

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.1)


def loader():
    # Every batch is the same: a plain loader does not find its place again in the middle of an epoch.
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1)
    return DataLoader(TensorDataset(images, torch.arange(4).repeat(4) % 3), 4)


def fit(callbacks, epochs=2, ckpt_path=None, **keywords):
    torch.manual_seed(0)
    module = Small()
    quiet(*callbacks, max_epochs=epochs, **keywords).fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return module


def zeros(module):
    weights = [module.get_submodule(name).weight for name in PRUNABLE]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


class Watch(Callback):
    def __init__(self):
        self.zeros = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.zeros.append(zeros(pl_module)[0])


def test_the_asked_sparsity_is_reached_to_the_weight_at_every_step():
    watch = Watch()
    pruning = PruningScheduler(
        schedule=Steps(values=[0.2, 0.5, 0.8, 0.9]), allocation=GlobalThreshold(), window=Window(end=1.0)
    )
    module = fit([pruning, watch])
    total = zeros(module)[1]
    assert watch.zeros == [round(value * total) for value in (0.2, 0.2, 0.5, 0.5, 0.8, 0.8, 0.9, 0.9)]


def test_channels_are_physically_removed_and_every_parameter_goes_on_training():
    module = fit([PruningScheduler(schedule=Iterative(end=0.5, rounds=2), structure=Channel())], epochs=4)
    assert [tuple(parameter.shape) for parameter in module.parameters()][:5] == [
        (4, 1, 3, 3),
        (4,),
        (4,),
        (4,),
        (4, 4, 3, 3),
    ]
    state = module.trainer.optimizers[0].state
    live = list(module.parameters())
    assert all(parameter in state and state[parameter]["exp_avg"].shape == parameter.shape for parameter in live)
    assert {int(state[parameter]["step"]) for parameter in live} == {16}


def test_mean_activation_prunes_the_least_active_channels():
    pruning = PruningScheduler(
        schedule=Constant(value=0.5),
        criterion=MeanActivation(),
        structure=Channel(shrink="end"),
        targets=Targets(include=["net.3"]),
    )
    module = fit([pruning])
    assert module.net[3].out_channels == 4
    assert module.net[0].out_channels == 8


@pytest.mark.parametrize("structure", [None, Channel(), Channel(shrink="never")], ids=["weight", "shrink", "mask"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_fit_is_bit_equal(tmp_path, structure, stop):
    def pruning():
        return PruningScheduler(schedule=Iterative(end=0.5, rounds=2), structure=structure, window=Window(end=0.75))

    whole = fit([pruning()])
    every = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=stop, save_top_k=-1, filename="{step}")
    fit([pruning(), every], enable_checkpointing=True)
    path = tmp_path / f"step={stop}.ckpt"
    torch.load(path, weights_only=True)
    resumed = fit([pruning()], ckpt_path=str(path))
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_best_and_the_last_checkpoint_are_of_the_pruned_model(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/score", mode="max", save_last=True)
    pruning = PruningScheduler(schedule=Constant(value=0.5), window=Window(begin=2, end=3, unit="epoch"))
    fit([pruning, best], epochs=4, enable_checkpointing=True)
    for path in (best.best_model_path, tmp_path / "last.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert (state["net.3.weight"] == 0).float().mean() == 0.5


@pytest.mark.parametrize("first", [True, False])
def test_an_averaged_copy_is_pruned_with_the_model(first):
    average = EMAWeightAveraging(decay=0.9)
    pruning = PruningScheduler(schedule=Iterative(end=0.5, rounds=2), structure=Channel())
    module = fit([average, pruning] if first else [pruning, average])
    assert module.net[0].out_channels == 4


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_schedule_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match="sparsity must be in"):
        PruningScheduler(schedule=Constant(value=value))


def test_removed_channels_cannot_come_back():
    with pytest.raises(ValueError, match="must not fall"):
        PruningScheduler(schedule=Steps(values=[0.5, 0.2]), structure=Channel())


def test_a_target_that_matches_nothing_is_refused_before_anything_changes():
    torch.manual_seed(0)
    module = Small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pruning = PruningScheduler(schedule=Constant(value=0.5), targets=Targets(include=["nett.*"]))
    with pytest.raises(TargetError, match="did you mean"):
        quiet(pruning, max_epochs=2).fit(module, loader(), loader())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_frozen_layers_alone_are_refused():
    torch.manual_seed(0)
    module = Small()
    module.net[3].requires_grad_(requires_grad=False)
    pruning = PruningScheduler(schedule=Constant(value=0.5), targets=Targets(include=["net.3"]))
    with pytest.raises(TargetError, match="frozen"):
        quiet(pruning, max_epochs=2).fit(module, loader(), loader())


class Padded(LightningModule):
    """Its network takes tokens, how many of them count, and a mask that hides the others."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap
        self.embed, self.net = nn.Embedding(9, 6), Masked()

    def training_step(self, batch, batch_idx):
        tokens = torch.randint(9, (8, 5), generator=torch.Generator().manual_seed(self.global_step))
        lengths = torch.arange(8) % 5 + 1
        hidden = torch.arange(5) >= lengths[:, None]
        return F.cross_entropy(self.net(self.wrap(self.embed(tokens)), hidden=hidden, scale=0.5), tokens[:, 0] % 3)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x, hidden, scale):
        x = x["tokens"] if isinstance(x, dict) else x.tokens if isinstance(x, Tokens) else x
        scores = self.two(self.one(x).relu()).masked_fill(hidden[..., None], -torch.inf)
        return scores.logsumexp(1) * scale


class Tokens(NamedTuple):
    tokens: torch.Tensor


def padded(wrap, folder, **resumed):
    torch.manual_seed(1)
    module = Padded(wrap)
    pruning = PruningScheduler(
        schedule=Iterative(end=0.5, rounds=4), structure=Channel(), window=Window(end=1.0), network="net"
    )
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    quiet(pruning, saver, max_epochs=1, enable_checkpointing=True).fit(module, DataLoader(range(8)), **resumed)
    return module


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_resumed_fit_decides_alike_though_no_data_went_into_its_checkpoint(stop, tmp_path):
    for wrap in (lambda x: x, lambda x: {"tokens": x}):
        whole = padded(wrap, tmp_path / "whole")
        resumed = padded(wrap, tmp_path, ckpt_path=tmp_path / "whole" / f"step={stop}.ckpt", weights_only=True)
        assert whole.net.one.out_features == 8
        assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_objects_of_the_users_are_looked_at_again_and_what_is_due_waits_one_batch(tmp_path):
    padded(Tokens, tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"args\[0\] is of type Tokens"):
        resumed = padded(Tokens, tmp_path, ckpt_path=tmp_path / "whole" / "step=4.ckpt", weights_only=True)
    assert resumed.net.one.out_features == 8
