"""Copies of the network that the user keeps, masked and cut with it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Window
from lightning_optim.errors import TargetError
from lightning_optim.pruning import Channel, Layer, Rewind, load_pruned
from lightning_optim.schedule import Linear
from support import quiet, same


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))


class Momentum(LightningModule):
    """Keeps a momentum copy of its network, as a self-supervised method does."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.slow = copy.deepcopy(self.net).requires_grad_(requires_grad=False)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), self.slow(batch[0]) + 1.0)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for fast, slow in zip(self.net.parameters(), self.slow.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9)


def loader():
    return DataLoader(TensorDataset(torch.randn(32, 16, generator=torch.Generator().manual_seed(0))), 32)


def scheduler(module, structure, **settings):
    window = Window(end=0.75)
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=structure, network="net", window=window, **settings)
    callback.follow(module.slow)
    return callback


@pytest.mark.parametrize("structure", [Channel(), Channel(shrink="end"), Channel(shrink="never"), None])
def test_a_momentum_copy_has_the_networks_shape_and_zeros_and_resumes_with_it(structure, tmp_path):
    module = Momentum()
    quiet(scheduler(module, structure), max_epochs=8).fit(module, loader())
    assert [p.shape for p in module.slow.parameters()] == [p.shape for p in module.net.parameters()]
    if structure is not None and structure.shrink != "never":
        assert module.slow[0].out_features == 16
    pairs = zip(module.net.parameters(), module.slow.parameters(), strict=True)
    assert all(bool((slow[fast == 0] == 0).all()) for fast, slow in pairs)
    half = Momentum()
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    quiet(scheduler(half, structure), saver, max_epochs=8, enable_checkpointing=True).fit(half, loader())
    resumed = Momentum()
    path = tmp_path / "epoch=3.ckpt"
    quiet(scheduler(resumed, structure), max_epochs=8).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    assert same(dict(module.state_dict()), dict(resumed.state_dict()))


def test_what_is_no_copy_is_refused_before_anything_has_changed():
    module = Momentum()
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(), network="net")
    callback.follow(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5)))
    with pytest.raises(TargetError, match=r"'0.weight' is \[32, 16\] there and \[8, 16\] here"):
        quiet(callback, max_epochs=4).fit(module, loader())
    assert module.net[0].out_features == 32
    with pytest.raises(TypeError, match=r"needs a module with the network's names, got list"):
        callback.follow([*module.slow.parameters()])
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(), network="net")
    callback.follow(module)
    with pytest.raises(TargetError, match="Momentum, given to follow, holds weights of the network itself"):
        quiet(callback, max_epochs=4).fit(module, loader())


@pytest.mark.parametrize("structure", [Channel(), Channel(shrink="end"), Channel(shrink="never"), None])
def test_rewinding_takes_the_copy_along(structure):
    module = Momentum()

    class Places(Callback):
        def __init__(self):
            self.slow = {}

        def on_train_batch_start(self, trainer, *_):
            self.slow[trainer.global_step] = copy.deepcopy(module.slow)[0]

    callback = PruningScheduler(
        schedule=Linear(end=0.5), structure=structure, network="net", window=Window(end=0.75), rewind=Rewind(step=1)
    )
    callback.follow(module.slow)
    before, after = Places(), Places()
    quiet(before, callback, after, max_epochs=8).fit(module, loader())
    assert [p.shape for p in module.slow.parameters()] == [p.shape for p in module.net.parameters()]
    # Each pruning step goes back to step 1: the copy then holds what it held there, as far as that is left.
    kept = callback.cut["0.weight"][0][1] if callback.cut else torch.arange(32)
    early, late = before.slow[1].bias[kept], after.slow[6].bias
    is_left = after.slow[6].weight.ne(0).any(1)
    assert torch.equal(early[is_left], late[is_left])
    assert not torch.equal(before.slow[6].bias[: len(late)], late)


class Averaged(Momentum):
    """Averages its network by torch's own class."""

    def __init__(self):
        super().__init__()
        self.slow = AveragedModel(self.net)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), torch.ones(32, 5))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.slow.update_parameters(self.net)


def test_an_averaged_model_of_torch_follows():
    module = Averaged()
    quiet(scheduler(module, Channel()), max_epochs=8).fit(module, loader())
    assert [p.shape for p in module.slow.module.parameters()] == [p.shape for p in module.net.parameters()]
    assert module.slow.module[0].out_features == 16


def test_a_scheduler_that_prunes_another_module_next_follows_that_ones_copy():
    module, other = Momentum(), Momentum()
    callback = scheduler(module, Channel())
    quiet(callback, max_epochs=8).fit(module, loader())
    callback.follow(other.slow)
    quiet(callback, max_epochs=8).fit(other, loader())
    assert same(dict(other.state_dict()), dict(module.state_dict()))


class TwoCopies(Momentum):
    """Registers a teacher of the network's shape, which nothing may prune, before the network."""

    def __init__(self, net=mlp):
        LightningModule.__init__(self)
        self.teacher = net().requires_grad_(requires_grad=False)
        self.net = net()
        self.slow = copy.deepcopy(self.net).requires_grad_(requires_grad=False)


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 5))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.head = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x)
        return self.head(x + self.two(x))[:, :5]


@pytest.mark.parametrize(
    ("net", "structure"),
    [
        (mlp, Channel()),
        (normed, Channel()),
        (normed, Channel(shrink="never")),
        (mlp, None),
        (Residual, Layer()),
    ],
)
def test_a_checkpoint_that_holds_the_copy_is_read_with_it(net, structure, tmp_path):
    module = TwoCopies(net)
    trainer = quiet(scheduler(module, structure), max_epochs=8)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    loaded = load_pruned(TwoCopies(net), tmp_path / "pruned.ckpt")
    assert same(dict(loaded.state_dict()), dict(module.state_dict()))
    for name in ("teacher", "net", "slow"):
        x = torch.randn(3, 16)
        assert torch.equal(loaded.get_submodule(name)(x), module.get_submodule(name)(x)), name


class Forgotten(LightningModule):
    """Averages weights of its network by hand, and tells no scheduler."""

    def __init__(self, kind):
        super().__init__()
        self.net = mlp()
        tensors = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        kinds = {"list": [*tensors.values()], "dict": tensors, "module": copy.deepcopy(self.net)}
        self.slow = kinds.get(kind, [kinds["module"]])

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), torch.ones(32, 5))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        slow = self.slow[0].state_dict() if isinstance(self.slow, list) and len(self.slow) == 1 else self.slow
        slow = slow.state_dict() if isinstance(slow, nn.Module) else slow
        (slow["0.weight"] if isinstance(slow, dict) else slow[0]).lerp_(self.net[0].weight.detach(), 0.1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.01)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("list", "slow.0"),
        ("dict", "slow.0.weight"),
        ("module", "slow.0.weight"),
        ("list of modules", "slow.0.0.weight"),
    ],
)
def test_a_copy_that_is_not_followed_is_named_when_training_fails_over_it(kind, place):
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=Channel(), network="net", window=Window(end=0.75))
    with (
        pytest.warns(UserWarning, match=rf"{place} is shaped as '0.weight' was.*PruningScheduler.follow"),
        pytest.raises(RuntimeError, match="size of tensor"),
    ):
        quiet(callback, max_epochs=8).fit(Forgotten(kind), loader())
