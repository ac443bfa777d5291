"""Layers whose weight is computed are pruned through their originals, or refused before anything has changed."""

import copy
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import DataLoader

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.errors import TargetError
from lightning_optim.pruning import (
    Block,
    Channel,
    GlobalThreshold,
    Movement,
    Neuron,
    RandomRegrowth,
    Taylor,
    Weight,
    load_pruned,
)
from lightning_optim.schedule import Linear
from support import quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Tanh(nn.Module):
    def forward(self, weight):
        return torch.tanh(weight)


class Exp(nn.Module):
    def forward(self, weight):
        return torch.exp(weight)


def user(kind):
    def parametrized(layer):
        parametrize.register_parametrization(layer, "weight", kind())
        return layer

    return parametrized


KINDS = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm_along_inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight_norm_of_all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral_norm": parametrizations.spectral_norm,
    "old_weight_norm": nn.utils.weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
    "elementwise": user(Tanh),
    "torch_prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.25),
}


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.one, self.two = norm(nn.Conv2d(3, 8, 3)), norm(nn.Conv2d(8, 6, 3))
        self.three, self.head = norm(nn.Linear(6, 8)), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.two(F.relu(self.one(x)))).mean((2, 3))
        return self.head(F.relu(self.three(x)))


class Module(LightningModule):
    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(norm)

    def training_step(self, batch, batch_idx):
        x = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(10 * self.current_epoch + batch_idx))
        return F.cross_entropy(self.net(x), x[:, 0, 0, :3].argmax(1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def fit(norm, ckpt_path=None, epochs=3, **settings):
    module = Module(norm)
    callback = PruningScheduler(
        **{"schedule": Linear(end=0.5), "targets": Targets(exclude=["net.head"])}
        | {"window": Window(end=0.75, every=0.25)}
        | settings
    )
    trainer = quiet(callback, max_epochs=epochs)
    trainer.fit(module, DataLoader(torch.arange(4)), ckpt_path=ckpt_path)
    return module.eval(), trainer


def answer(module):
    with torch.no_grad():
        return module.net(torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(99)))


def weights(module):
    answer(module)  # hooks compute their weights before a call
    return [layer.weight for layer in (module.net.one, module.net.two, module.net.three)]


@pytest.mark.parametrize("kind", KINDS)
def test_single_weights_of_what_is_computed_are_zero_and_stay_so(kind):
    module, _ = fit(KINDS[kind])
    assert answer(module).isfinite().all()
    for weight in weights(module):
        assert int((weight == 0).sum()) == weight.numel() // 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", [Neuron(), Block(rows=2, columns=3)], ids=["neuron", "block"])
def test_rows_and_blocks_of_what_is_computed_are_zero(kind, structure):
    module, _ = fit(KINDS[kind], structure=structure)
    assert answer(module).isfinite().all()
    for weight in weights(module):
        rows = int((weight == 0).flatten(1).all(1).sum())
        assert rows == len(weight) // 2 if isinstance(structure, Neuron) else int((weight == 0).sum()) >= 9


@pytest.mark.parametrize("kind", KINDS)
def test_channels_go_from_the_originals_and_the_small_network_computes_what_the_masked_one_does(kind):
    masked, _ = fit(KINDS[kind], structure=Channel(shrink="never"))
    small, _ = fit(KINDS[kind], structure=Channel(shrink="end"))
    assert answer(masked).isfinite().all()
    assert [tuple(weight.shape) for weight in weights(small)] == [(4, 3, 3, 3), (3, 4, 3, 3), (4, 3)]
    assert [int((weight != 0).flatten(1).any(1).sum()) for weight in weights(masked)] == [4, 3, 4]
    assert (small.net.one.out_channels, small.net.two.in_channels, small.net.two.out_channels) == (4, 4, 3)
    assert (small.net.three.in_features, small.net.three.out_features, small.net.head.in_features) == (3, 4, 4)
    torch.testing.assert_close(answer(small), answer(masked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_layer_is_said_to_be_left_alone_and_what_has_gone_is_told_by_layer(kind, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        warnings.filterwarnings("error", message=".*leaves alone.*")
        fit(KINDS[kind], structure=Neuron())
    told = [text for text in caplog.messages if "PruningScheduler" in text]
    assert "(one 4 of 8, two 3 of 6, three 4 of 8)" in told[-1]


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old_weight_norm", "old_spectral_norm"])
def test_a_shrunk_file_is_read_again(kind, tmp_path):
    module, trainer = fit(KINDS[kind], structure=Channel())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    small = load_pruned(Module(KINDS[kind]), tmp_path / "small.ckpt").eval()
    torch.testing.assert_close(answer(small), answer(module))
    resumed, _ = fit(KINDS[kind], structure=Channel(), ckpt_path=tmp_path / "small.ckpt", epochs=4)
    assert [weight.shape for weight in weights(resumed)] == [weight.shape for weight in weights(module)]


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old_weight_norm", "old_spectral_norm"])
@pytest.mark.parametrize("criterion", [Taylor(), Movement()], ids=["taylor", "movement"])
def test_scores_by_gradients_are_those_of_the_originals(kind, criterion):
    module, _ = fit(KINDS[kind], criterion=criterion, structure=Weight(), allocation=GlobalThreshold())
    found = weights(module)
    assert sum(int((weight == 0).sum()) for weight in found) == sum(weight.numel() for weight in found) // 2


def of_bias(kind):
    def parametrized(layer):
        parametrize.register_parametrization(layer, "bias", kind())
        return layer

    return parametrized


def test_a_bias_that_is_computed_goes_with_its_row():
    module, _ = fit(of_bias(Tanh), structure=Neuron())
    for layer in (module.net.one, module.net.two, module.net.three):
        gone = (layer.weight == 0).flatten(1).all(1)
        assert int(gone.sum()) == len(gone) // 2
        assert not layer.bias[gone].any()
        assert layer.bias[~gone].all()


@pytest.mark.parametrize(
    "make", [user(Exp), of_bias(Exp), parametrizations.orthogonal], ids=["exp", "exp_of_bias", "orthogonal"]
)
@pytest.mark.parametrize("structure", [Weight(), Channel()], ids=["weight", "channel"])
def test_what_makes_no_zeros_of_zeros_is_refused_by_name_before_anything_changes(make, structure):
    before = copy.deepcopy(Module(make).state_dict())
    module = Module(make)
    callback = PruningScheduler(schedule=Linear(end=0.5), structure=structure)
    with pytest.raises(TargetError, match=r"'net\.one'.*targets\.exclude, or .*remove_parametrizations"):
        quiet(callback, max_epochs=1).fit(module, DataLoader(torch.arange(4)))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_regrowth_of_a_weight_under_weight_norm_is_refused():
    with pytest.raises(ValueError, match=r"'one' is under weight normalization; leave it"):
        fit(KINDS["weight_norm"], regrow=RandomRegrowth())
    module, _ = fit(KINDS["spectral_norm"], regrow=RandomRegrowth())
    assert all(int((weight == 0).sum()) == weight.numel() // 2 for weight in weights(module))
