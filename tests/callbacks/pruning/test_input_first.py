"""Layers whose weight is ``[in, out]`` are pruned as those are whose weight is ``[out, in]``."""

import copy

import pytest
import torch
from gpt2 import GPT2, Conv1D, twins
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import PruningScheduler, Targets, Window
from lightning_optim.errors import TargetError
from lightning_optim.pruning import (
    SNIP,
    Block,
    Channel,
    Head,
    MeanActivation,
    Movement,
    Neuron,
    RandomRegrowth,
    SemiStructured,
    Taylor,
    Wanda,
    Weight,
    load_pruned,
)
from lightning_optim.schedule import Constant, Steps
from support import quiet

BLOCKS = Targets(include=["net.h.*"])


class Module(LightningModule):
    def __init__(self, net, lr=0.05):
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def loader(*shape, size=32):
    x = torch.randn(size, *shape, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.arange(size) % 4), 4)


def fit(net, data=None, lr=0.05, values=(0.25, 0.5), **keywords):
    torch.manual_seed(0)
    defaults = {
        "schedule": Steps(values=values), "window": Window(end=len(values), unit="step"), "targets": BLOCKS
    }  # fmt: skip
    pruning = PruningScheduler(**defaults | keywords)
    quiet(pruning, max_epochs=1).fit(Module(net, lr), data or loader(5, 8))
    return net, pruning


WAYS = [
    (Weight(), None),
    (Weight(), Wanda()),
    (Weight(), Taylor()),
    (Neuron(), MeanActivation()),
    (Block(), Movement()),
    (SemiStructured(), Wanda(within="layer")),
    (Channel(), Taylor()),
    (Channel(), MeanActivation()),
    (Channel(shrink="end"), Wanda(within="layer")),
    (Head(), SNIP()),
]


@pytest.mark.parametrize(("structure", "criterion"), WAYS, ids=str)
def test_what_goes_is_what_goes_of_torchs_own_layers(structure, criterion):
    for net, pruning in [fit(net, lr=0.0, structure=structure, criterion=criterion) for net in twins()]:
        layers = {name: module for name, module in net.named_modules() if isinstance(module, Conv1D)}
        state = net.state_dict()
        for name in layers:
            state[f"{name}.weight"] = state[f"{name}.weight"].T
        if layers:
            found, measured = state, pruning.sparsity
    assert measured == pruning.sparsity > 0.2
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_single_weights_that_come_back_do_so_where_they_were():
    window, regrow = Window(end=4, every=1, unit="step"), RandomRegrowth(fraction=0.3)
    net, _ = fit(GPT2(), window=window, schedule=Constant(value=0.5), regrow=regrow)
    for name, module in net.named_modules():
        if isinstance(module, Conv1D):
            assert int((module.weight == 0).sum()) == module.weight.numel() // 2, name


def test_two_of_four_go_along_what_an_output_reads():
    net, _ = fit(GPT2(), structure=SemiStructured(), values=(0.5,))
    weights = [module.weight for module in net.modules() if isinstance(module, Conv1D)]
    assert len(weights) == 8
    for weight in weights:  # [in, out]
        assert torch.equal((weight.view(-1, 4, weight.shape[1]) == 0).sum(1), torch.full_like(weight[::4], 2).long())


@pytest.mark.parametrize(("structure", "pattern"), [(Channel, "net.h.*.mlp.c_fc"), (Head, "net.h.*.attn.c_attn")])
def test_a_shrunk_network_computes_what_the_masked_one_does(structure, pattern):
    torch.manual_seed(0)
    net, batch = GPT2(), torch.randn(3, 5, 8)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if name.endswith("bias") else 0)
    targets, before = Targets(include=[pattern]), sum(parameter.numel() for parameter in net.parameters())
    masked, _ = fit(copy.deepcopy(net), lr=0.0, targets=targets, structure=structure(shrink="never"))
    shrunk, pruning = fit(copy.deepcopy(net), lr=0.0, targets=targets, structure=structure(shrink="end"))
    torch.testing.assert_close(shrunk(batch), masked(batch), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(masked(batch), net(batch), atol=1e-3)
    # Half of 64 channels, or of 4 heads of 4, in two blocks: columns and biases of what makes them, rows of what reads.
    gone = 2 * 32 * (16 + 1 + 16) if structure is Channel else 2 * 8 * (3 * (16 + 1) + 16)
    assert sum(parameter.numel() for parameter in shrunk.parameters()) == before - gone
    layer = shrunk.h[0].mlp.c_fc if structure is Channel else shrunk.h[0].attn.c_attn
    assert (layer.nf, layer.nx) == ((32, 16) if structure is Channel else (24, 16))
    assert pruning.sparsity == 0.5


@pytest.mark.parametrize("by", ["cut", "example"])
def test_a_shrunk_file_is_read_into_a_fresh_network(tmp_path, by):
    net, pruning = fit(GPT2(), structure=Channel(), targets=Targets(include=["net.h.*.mlp.c_fc"]))
    torch.save(net.state_dict(), tmp_path / "shrunk.pt")
    batch = torch.randn(3, 5, 8)
    loaded = load_pruned(GPT2(), tmp_path / "shrunk.pt", **{by: {"cut": pruning.cut, "example": (batch,)}[by]})
    assert torch.equal(loaded.eval()(batch), net.eval()(batch))
    assert loaded.h[1].mlp.c_fc.nf == 32


class UNet(nn.Module):
    """Down and up again, in one to three dimensions."""

    def __init__(self, rank, groups=1):
        super().__init__()
        down, up = (getattr(nn, f"{kind}{rank}d") for kind in ("Conv", "ConvTranspose"))
        self.down, self.up, self.norm = down(1, 8, 3), up(8, 12, 3, groups=groups), getattr(nn, f"BatchNorm{rank}d")(12)
        self.last, self.out = up(12, 8, 1), down(8, 4, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.up(F.relu(self.down(x)))))
        return self.out(F.relu(self.last(x))).flatten(2).mean(2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_lose_weights_and_channels(rank):
    torch.manual_seed(0)
    net, data = UNet(rank), loader(1, *[6] * rank)
    whole, _ = fit(copy.deepcopy(net), data, targets=Targets(), structure=Weight())
    assert [int((layer.weight == 0).sum()) for layer in (whole.up, whole.last)] == [8 * 12 * 3**rank // 2, 12 * 8 // 2]
    targets = Targets(include=["net.up", "net.last"])
    masked, _ = fit(copy.deepcopy(net), data, lr=0.0, targets=targets, structure=Channel(shrink="never"))
    shrunk, _ = fit(copy.deepcopy(net), data, lr=0.0, targets=targets, structure=Channel(shrink="end"))
    batch = torch.randn(2, 1, *[6] * rank)
    torch.testing.assert_close(shrunk.eval()(batch), masked.eval()(batch), rtol=1e-6, atol=1e-6)
    assert [tuple(layer.weight.shape[:2]) for layer in (shrunk.up, shrunk.last)] == [(8, 6), (6, 4)]
    assert (shrunk.up.out_channels, shrunk.last.in_channels, shrunk.last.out_channels) == (6, 6, 4)
    assert shrunk.norm.num_features == shrunk.out.in_channels + 2 == 6


def test_a_transposed_convolution_in_groups_is_named_and_left_alone():
    with pytest.warns(UserWarning, match=r"leaves alone .*: net\.up \(ConvTranspose2d\)$"):
        net, _ = fit(UNet(2, groups=2), loader(1, 6, 6), targets=Targets(), structure=Weight())
    assert net.up.weight.count_nonzero() == net.up.weight.numel()
    assert net.last.weight.count_nonzero() == 48
    with pytest.raises(TargetError, match=r"transposed in groups .*: net\.up"):
        fit(UNet(2, groups=2), loader(1, 6, 6), targets=Targets(include=["net.up"]))


class Foreign(nn.Module):
    """A module of the same name that wraps a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3)

    def forward(self, x):
        return self.conv(x)


Foreign.__name__ = "Conv1D"


def test_a_module_that_only_has_the_name_is_looked_into():
    net = nn.Sequential(Foreign(), nn.Flatten(), nn.Linear(24, 4))
    net, _ = fit(net, loader(8, 5), targets=Targets(), structure=Weight())
    assert net[0].conv.weight.count_nonzero() == net[0].conv.weight.numel() // 2
