"""Integers that count channels."""

import torch
from torch import nn

from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.attributes import counters
from lightning_optim.pruning import shrink_channels


def cut(net, batch):
    coupling = couple(capture_network(net, (batch,)))
    choices = [(group, torch.arange((group.size + 1) // 2)) for group in coupling.groups]
    done = shrink_channels(net, coupling, choices, (batch,))
    assert not coupling.whole
    assert not done.refused
    return done


def test_a_number_of_heads_goes_before_the_width_of_one():
    assert counters({"num_heads": 4, "head_dim": 4, "window_size": 4, "depth": 4}, 4) == ["num_heads"]
    assert counters({"head_dim": 4}, 4) == ["head_dim"]
    assert counters({"num_layers": 4, "vocab_size": 4, "kernel_size": 4}, 4) == []


class Convolution(nn.Module):
    """A linear layer with its weight the other way round, whose width is written in ``nf``."""

    def __init__(self, nx, nf):
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


def test_a_width_is_read_in_a_view_and_in_a_split():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.split_size, self.enter, self.leave = 6, Convolution(3, 12), Convolution(6, 2)

        def forward(self, x):
            gate, value = self.enter(x).split(self.split_size, -1)
            return self.leave(gate.sigmoid() * value)

    torch.manual_seed(0)
    net = Gated()
    assert cut(net, torch.randn(2, 5, 3)).error <= 1e-5
    assert (net.split_size, net.enter.nf, net.leave.nf) == (3, 6, 2)


def test_parts_of_a_split_are_told_by_the_whole():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand_chs, self.enter, self.leave = 8, nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            left, right = self.enter(x).split(self.expand_chs // 2, 1)
            return self.leave(left.relu() + right)

    torch.manual_seed(0)
    net = Halves()
    cut(net, torch.randn(2, 3, 4, 4))
    assert (net.expand_chs, net.leave.in_channels) == (4, 2)
