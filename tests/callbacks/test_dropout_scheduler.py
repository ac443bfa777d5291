"""Dropout by schedule: weights equal to those of a network that has it written into its forward."""

import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DropoutScheduler, Targets, Window
from lightning_optim.errors import TapError, TargetError
from lightning_optim.regularization import DropBlock, Dropout, PresentDropout, StochasticDepth
from lightning_optim.regularization.draws import seed_for
from lightning_optim.schedule import Linear
from support import quiet, run_script, same

pytestmark = pytest.mark.filterwarnings("ignore")


class Branch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Two residual branches; ``dropped`` is what a hand writes around each module's output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), Branch(6), Branch(6)
        self.drop, self.head, self.spare = nn.Dropout(0.25), nn.Linear(6, 4), nn.Linear(6, 4)

    def dropped(self, path, x):
        return x

    def forward(self, x):
        x = self.dropped("stem", self.stem(x))
        x = x + self.dropped("first", self.first(x))
        x = x + self.dropped("second", self.second(x))
        return self.head(self.present(x.mean((2, 3))))

    def present(self, x):
        return self.drop(x)


class Module(LightningModule):
    network = Net

    def __init__(self):
        super().__init__()
        self.net = self.network()
        self.net.owner = [self]

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Manual(Module):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()


class Written(Net):
    """Each method as a hand writes it, for the modules in ``rates``."""

    rates: ClassVar[dict] = {}

    def seed(self, name):
        (owner,) = self.owner
        return seed_for("dropout", "", 0, owner.trainer.fit_loop.epoch_loop.total_batch_idx, owner.global_rank, name, 0)

    def progress(self):
        (owner,) = self.owner
        return owner.trainer.fit_loop.epoch_loop.total_batch_idx / 12

    def dropped(self, path, x):
        if path not in self.rates or not self.training:
            return x
        key, rate = self.rates[path]
        rate = rate(self.progress()) if callable(rate) else rate
        generator = torch.Generator().manual_seed(self.seed(f"{key}/net.{path}"))
        return getattr(self, key)(x, rate, generator)

    def dropout(self, x, rate, generator):
        kept = torch.empty_like(x).bernoulli_(1 - rate, generator=generator)
        return x * (kept / (1 - rate))

    def stochastic_depth(self, x, rate, generator):
        kept = torch.empty(len(x), 1, 1, 1, dtype=x.dtype).bernoulli_(1 - rate, generator=generator)
        return x * (kept / (1 - rate))

    def drop_block(self, x, rate, generator):
        gamma = rate / 9 * 36 / 16
        corners = torch.empty(*x.shape[:2], 4, 4, dtype=torch.bool).bernoulli_(gamma, generator=generator)
        kept = 1 - F.max_pool2d(F.pad(corners.float(), (2, 2, 2, 2)), 3, 1)
        return x * (kept * (kept.numel() / kept.sum())).to(x.dtype)

    def present(self, x):
        if "drop" not in self.rates or not self.training:
            return self.drop(x)
        key, rate = self.rates["drop"]
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed(f"{key}/net.drop"))
            return F.dropout(x, rate(self.progress()) if callable(rate) else rate)


def at(*paths):
    return Targets(include=tuple(f"net.{path}" for path in paths))


CASES = {
    "dropout": (Dropout(), 0.3, at("stem", "second"), {"stem": 0.3, "second": 0.3}),
    "stochastic_depth": (StochasticDepth(), 0.5, at("first", "second"), {"first": 0.25, "second": 0.5}),
    "drop_block": (DropBlock(block_size=3), 0.2, at("stem"), {"stem": 0.2}),
    "present_dropout": (PresentDropout(), 0.5, None, {"drop": 0.5}),
    "scaled": (PresentDropout(mode="scale"), 2.0, at("drop"), {"drop": 0.5}),
    "scheduled": (Dropout(), Linear(start=0.0, end=0.6), at("stem"), {"stem": lambda progress: 0.6 * progress}),
    "scheduled_present": (
        PresentDropout(),
        Linear(start=0.6, end=0.0),
        None,
        {"drop": lambda x: 0.6 + (0.0 - 0.6) * x},
    ),
}
KEYS = {"scaled": "present_dropout", "scheduled": "dropout", "scheduled_present": "present_dropout"}


def scheduler(case, **settings):
    method, probability, targets, _ = CASES[case]
    return DropoutScheduler(**{"dropout": method, "probability": probability, "targets": targets} | settings)


def written(case, kind=Module):
    rates = {path: (KEYS.get(case, case), rate) for path, rate in CASES[case][3].items()}
    return type("ByHand", (kind,), {"network": type("WrittenNet", (Written,), {"rates": rates})})()


def data():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 1, 6, 6, generator=generator), torch.randint(0, 4, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def fit(module, *callbacks, max_epochs=2, ckpt_path=None, **settings):
    torch.manual_seed(5)
    trainer = quiet(*callbacks, max_epochs=max_epochs, num_sanity_val_steps=0, **settings)
    trainer.fit(module, data(), data(), ckpt_path=ckpt_path)
    return module


def weights(module):
    return dict(module.state_dict())


@pytest.mark.parametrize("kind", [Module, Manual])
@pytest.mark.parametrize("case", CASES)
def test_weights_equal_those_of_dropout_written_into_the_network(case, kind):
    module = kind()
    found = fit(module, scheduler(case))
    assert same(weights(found), weights(fit(written(case, kind))))
    assert weights(found).keys() == weights(Module()).keys()
    assert not same(weights(found), weights(fit(kind())))


SETTINGS = [{"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("case", ["dropout", "stochastic_depth", "drop_block", "present_dropout"])
def test_they_do_so_under_the_trainers_settings(case, settings):
    assert same(weights(fit(Module(), scheduler(case), **settings)), weights(fit(written(case), **settings)))


class CheckpointedNet(Net):
    """Branches run again in the backward, one in the other."""

    reentrant = False

    def forward(self, x):
        def rest(x):
            x = x + checkpoint(self.first, x, use_reentrant=self.reentrant)
            return x + checkpoint(self.second, x, use_reentrant=self.reentrant)

        x = self.stem(x)
        x = checkpoint(rest, x, use_reentrant=self.reentrant)
        return self.head(self.drop(x.mean((2, 3))))


@pytest.mark.parametrize("case", ["stochastic_depth", "present_dropout"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [Module, Manual])
def test_what_runs_again_in_the_backward_drops_the_same(case, reentrant, kind):
    def still(module):
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.0
        return module

    network = type("Network", (CheckpointedNet,), {"reentrant": reentrant})
    module = still(type("Checkpointed", (kind,), {"network": network})())
    found = dict(fit(module, scheduler(case)).named_parameters())
    assert same(found, dict(fit(still(kind()), scheduler(case)).named_parameters()))


def test_several_methods_drop_by_key_and_one_module_may_have_two():
    both = {"dropout": Dropout(), "depth": StochasticDepth(decay="none")}
    callback = DropoutScheduler(
        dropout=both, probability={"dropout": 0.2, "depth": 0.4}, targets={"dropout": at("stem"), "depth": at("first")}
    )
    rates = {"stem": ("dropout", 0.2), "first": ("depth", 0.4)}
    members = {"rates": rates, "depth": Written.stochastic_depth}
    by_hand = type("ByHand", (Module,), {"network": type("WrittenNet", (Written,), members)})()
    assert same(weights(fit(Module(), callback)), weights(fit(by_hand)))


def test_of_modules_in_one_another_the_outer_one_is_dropped_from():
    inner, outer = scheduler("dropout", targets=at("first*")), scheduler("dropout", targets=at("first"))
    assert same(weights(fit(Module(), inner)), weights(fit(Module(), outer)))


def test_a_module_that_is_called_twice_drops_anew_in_each_call():
    class Twice(Net):
        def forward(self, x):
            self.seen = [self.first(self.stem(x)) for _ in range(2)]
            return self.head(sum(self.seen).mean((2, 3)))

    module = type("TwiceModule", (Module,), {"network": Twice})()
    fit(module, scheduler("dropout", targets=at("first"), probability=0.5), max_epochs=1, limit_val_batches=0)
    first, second = ((each == 0).flatten() for each in module.net.seen)
    assert not torch.equal(first, second)


class Look(Callback):
    """What the network says in validation, and what a copy of it says in training."""

    def __init__(self):
        self.same, self.rates, self.logged = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.rates.append(pl_module.net.drop.p)
        self.logged.append({key: float(each) for key, each in trainer.callback_metrics.items() if "reg" in key})
        copied = copy.deepcopy(pl_module).train()
        copied.net.drop.p, x = 0.0, torch.ones(2, 1, 6, 6)
        self.same.append(torch.equal(copied.net(x), copied.net(x)))  # a copy has no hooks

    def on_validation_end(self, trainer, pl_module):
        x = torch.ones(2, 1, 6, 6)
        self.same.append(torch.equal(pl_module.eval().net(x), copy.deepcopy(pl_module).eval().net(x)))
        pl_module.train()


def test_nothing_is_dropped_in_evaluation_nor_by_copies_and_rates_are_their_own_after_the_fit():
    look, module = Look(), Module()
    callback = DropoutScheduler(
        dropout={"stem": Dropout(), "there": PresentDropout()},
        probability={"stem": 0.5, "there": Linear(start=0.0, end=0.6)},
        targets={"stem": at("stem")},
        name="mine",
    )
    fit(module, callback, look)
    assert all(look.same)
    assert look.rates == pytest.approx([0.6 * batch / 12 for batch in range(12)])
    assert [each["regularization/mine/there"] for each in look.logged] == pytest.approx(look.rates)
    assert look.logged[3]["regularization/mine/stem"] == 0.5
    assert module.net.drop.p == 0.25
    assert not module.net.stem._forward_hooks
    assert not module.net.drop._forward_hooks
    assert "training_step" not in vars(module)


def test_rates_are_their_own_after_an_exception_too():
    class Fails(Module):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("stopped here")

    module = Fails()
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(module, scheduler("present_dropout"))
    assert module.net.drop.p == 0.25


def test_a_part_in_evaluation_mode_is_left_alone():
    class Frozen(Module):
        def on_train_batch_start(self, batch, batch_idx):
            self.net.stem.eval()

    assert same(weights(fit(Frozen(), scheduler("dropout", targets=at("stem")))), weights(fit(Frozen())))


def test_it_waits_for_its_window_and_a_resumed_fit_is_bit_equal(tmp_path):
    look = Look()
    fit(Module(), scheduler("present_dropout", window=Window(begin=8, unit="step")), look)
    assert look.rates == [0.25] * 8 + [0.5] * 4

    class Save(Callback):
        def on_train_epoch_end(self, trainer, *_):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = fit(Module(), scheduler("scheduled_present"), Save())
    resumed = fit(Module(), scheduler("scheduled_present"), ckpt_path=tmp_path / "half.ckpt")
    assert same(weights(resumed), weights(whole))
    assert not same(weights(fit(Module(), scheduler("scheduled_present", seed=1))), weights(whole))


def refused(module, callback, says, error=TargetError):
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    with pytest.raises(error, match=says):
        fit(module, callback)
    assert same(before, dict(module.named_parameters()))
    assert "training_step" not in vars(module)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_a_path_without_an_output_to_drop_is_refused():
    class Odd(Net):
        def __init__(self):
            super().__init__()
            self.lstm, self.layers = nn.LSTM(6, 6), nn.ModuleList([nn.Linear(6, 6)])

        def forward(self, x):
            x = super().forward(x)
            self.lstm(torch.ones(2, 2, 6))
            return x

    module = type("OddModule", (Module,), {"network": Odd})()
    says = "'net.spare' was not called in the training step, so that it has no output to drop"
    refused(module, scheduler("dropout", targets=at("spare")), says, TapError)
    refused(module, scheduler("dropout", targets=at("layers")), "'net.layers' was not called", TapError)
    says = "'net.lstm' has no output to drop: it returns 3 tensors in floating point; name a module that returns one"
    refused(module, scheduler("dropout", targets=at("lstm")), says, TapError)
    refused(module, scheduler("dropout", targets=at("steam")), "'net.steam' matches no module; did you mean 'net.stem'")
    refused(module, scheduler("present_dropout", targets=at("stem")), "'net.stem' matches no dropout module")
    says = r"probability 4 of 'present_dropout' makes a rate of 1 of the 0.25 of 'net.drop': rates must lie in \[0, 1\)"
    refused(module, scheduler("scaled", probability=Linear(end=4.0)), says, ValueError)


@pytest.mark.parametrize("case", ["dropout", "present_dropout"])
@pytest.mark.parametrize("how", ["wrapped", "in place", "whole"])
def test_a_compiled_network_is_refused(case, how):
    module = Module()
    if how == "wrapped":
        module.net = torch.compile(module.net, backend="eager")
    elif how == "in place":
        module.net.compile(backend="eager")
    with pytest.raises(TargetError, match="train it uncompiled"):
        fit(torch.compile(module, backend="eager") if how == "whole" else module, scheduler(case))
    assert module.net.drop.p == 0.25


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dropout": {}}, "at least one method"),
        ({"probability": 1.0}, r"probability of 'dropout' must lie in \[0, 1\), got 1.0"),
        ({"probability": Linear(end=1.0)}, r"probability of 'dropout' must lie in \[0, 1\)"),
        ({"probability": 0.0}, "probability of 'dropout' is 0, so there would be nothing to do"),
        ({"probability": {"other": 0.1}}, r"probability names \['other'\], but the methods are \['dropout'\]"),
        ({"targets": {"other": Targets()}}, r"targets names \['other'\], but the methods are \['dropout'\]"),
        ({"targets": None}, r"dropout 'dropout' \(Dropout\) must know where: name modules whose output"),
        ({"targets": Targets()}, r"in targets.include, such as 'net.layer1', got \['\*'\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DropoutScheduler(**{"dropout": Dropout(), "probability": 0.1, "targets": at("stem")} | settings)


@pytest.mark.slow
def test_two_ranks_draw_each_their_own_and_end_as_dropout_in_the_network(tmp_path):
    run_script(Path(__file__).with_name("dropout_on_two_ranks.py"), cwd=tmp_path)
