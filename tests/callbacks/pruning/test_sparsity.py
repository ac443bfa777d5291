"""What is reported is what is there, counted by hand."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Window
from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.pruning import Channel, MetricDrop, Neuron
from lightning_optim.schedule import Constant, Linear
from support import quiet


class Module(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def loader(*shape):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, *shape, generator=generator), torch.randint(0, 5, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), 8)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5))


def fit(net, callback, *others, data=None, **settings):
    module = Module(net)
    trainer = quiet(callback, *others, **{"max_epochs": 4, **settings})
    trainer.fit(module, data or loader(16))
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("shrink", ["update", "never"])
@pytest.mark.parametrize(("multiple", "gone"), [(1, 16 + 12), (8, 16 + 8), (24, 8)])
def test_channels_are_counted_of_those_that_were_targeted(multiple, gone, shrink):
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(multiple=multiple, shrink=shrink))
    module, logged = fit(mlp(), callback)
    rows = [layer.weight.abs().sum(1) for layer in (module.net[0], module.net[2])]
    alive = sum(int((row > 0).sum()) for row in rows)
    assert alive == 32 + 24 - gone
    assert callback.sparsity == gone / (32 + 24) == pytest.approx(logged["pruning/sparsity"])
    assert callback.target_sparsity == logged["pruning/target_sparsity"] == 0.5
    left = sum(int((parameter != 0).sum()) for parameter in module.net.parameters())
    assert logged["pruning/parameters"] == left


def test_weights_and_neurons_are_counted_in_their_own_unit():
    callback = PruningScheduler(schedule=Linear(end=0.5))
    module, logged = fit(mlp(), callback)
    weights = [layer.weight for layer in module.net if isinstance(layer, nn.Linear)]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert callback.sparsity == zeros / total
    assert logged["pruning/parameters"] == sum(p.numel() for p in module.parameters()) - zeros
    callback = PruningScheduler(schedule=Linear(end=0.3), structure=Neuron())
    module, _ = fit(mlp(), callback)
    gone = sum(int((layer.weight.abs().sum(1) == 0).sum()) for layer in module.net if isinstance(layer, nn.Linear))
    assert callback.sparsity == gone / (32 + 24 + 5)


class Shuffle(nn.Module):
    """All its channels are one: whatever goes, all go."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        for _ in range(2):
            left, right = x.chunk(2, 1)
            x = torch.cat([left, F.relu(self.b(right))], 1)
            x = x.view(len(x), 2, 8, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.o(x.mean((2, 3)))


def test_less_than_one_unit_is_no_fault_and_nothing_is_reported():
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=Channel())
    module, logged = fit(Shuffle(), callback, data=loader(3, 4, 4))
    assert all(parameter.all() for parameter in module.parameters())
    assert (callback.sparsity, callback.target_sparsity, logged["pruning/sparsity"]) == (0.0, 0.5, 0.0)


def test_whole_units_of_which_none_can_go_are_refused():
    class Fixed(nn.Module):
        """Its code knows its width."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 5)

        def forward(self, x):
            return self.b(F.layer_norm(self.a(x), (32,)))

    with pytest.raises((ShrinkError, TargetError), match="channels"):
        fit(Fixed(), PruningScheduler(schedule=Constant(value=0.5), structure=Channel()))


def test_the_count_survives_a_checkpoint(tmp_path):
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(multiple=8))
    module = Module(mlp())
    trainer = quiet(callback, max_epochs=4)
    trainer.fit(module, loader(16))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fresh = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(multiple=8))
    quiet(fresh).validate(Validated(mlp()), loader(16), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert (fresh.sparsity, fresh.target_sparsity) == (callback.sparsity, 0.5) == (24 / 56, 0.5)


class Validated(Module):
    def validation_step(self, batch, batch_idx):
        self.net(batch[0])


class Stop(Callback):
    def __init__(self, how):
        self.how = how

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6 and self.how == "interrupt":
            raise KeyboardInterrupt
        trainer.should_stop = trainer.global_step >= 6 and self.how == "stop"


@pytest.mark.parametrize("how", ["stop", "interrupt", "through"])
def test_a_fit_that_is_stopped_before_its_target_says_what_it_has_reached(how, recwarn):
    callback = PruningScheduler(schedule=Linear(end=0.8), window=Window(end=0.9, every=0.1))
    try:
        fit(mlp(), callback, Stop(how))
    except (KeyboardInterrupt, SystemExit):
        assert how == "interrupt"
    said = [
        str(warning.message) for warning in recwarn if "the fit was stopped at a sparsity of" in str(warning.message)
    ]
    assert len(said) == (how != "through")
    assert all(f"{callback.target_sparsity:.3g}, where the schedule ends at 0.8" in each for each in said)
    assert (callback.target_sparsity == 0.8) == (how == "through")


def test_what_is_left_is_counted_again_when_a_metric_has_sent_training_back():
    class Falling(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val/score", -float(self.trainer.callbacks[0].target_sparsity))

    module = Falling(mlp())
    until = MetricDrop(monitor="val/score", max_drop=0.0, cooldown=0.0)
    callback = PruningScheduler(schedule=Linear(end=0.5), until=until, window=Window(end=0.5))
    trainer = quiet(callback, max_epochs=8)
    trainer.fit(module, loader(16), loader(16))
    total = sum(parameter.numel() for parameter in module.net.parameters())
    assert callback.sparsity == float(trainer.callback_metrics["pruning/sparsity"]) == 0.0
    assert float(trainer.callback_metrics["pruning/parameters"]) == total


def test_layers_of_other_kinds_are_named_one_by_one():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.lstm, self.fc = nn.ConvTranspose1d(1, 2, 3), nn.LSTM(18, 8, batch_first=True), nn.Linear(8, 5)
            self.names = nn.Embedding(4, 4)

        def forward(self, x):
            return self.fc(self.lstm(self.up(x.unsqueeze(1)))[0].mean(1))

    with pytest.warns(UserWarning, match=r"leaves alone .*: net.lstm \(LSTM\)$"):
        fit(Recurrent(), PruningScheduler(schedule=Constant(value=0.5)))
