"""Widths of layers whose weight is ``[in, out]``."""

import itertools

import pytest
import torch
from gpt2 import GPT2
from torch import nn

from lightning_optim import Targets
from lightning_optim.cost import Parameters
from lightning_optim.nas import ElasticWidth
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet


def autoencoder():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1)
    )


@pytest.mark.parametrize(
    ("make", "example", "targets", "sizes"),
    [
        # A hidden channel of GPT-2's feed-forward layers takes 16 weights and a bias, and 16 weights that read it.
        (GPT2, torch.randn(2, 5, 8), ["h.*.mlp.c_fc"], [64 * 33, 64 * 33]),
        (autoencoder, torch.randn(2, 1, 6, 6), ["2"], [8 * (4 * 9 + 1 + 2 + 1)]),
    ],
)
def test_every_width_is_that_of_the_extracted_network(make, example, targets, sizes):
    torch.manual_seed(0)
    net = make().eval()
    space = {"w": ElasticWidth(targets=Targets(include=targets), fractions=(0.25, 0.5, 1.0))}
    supernet = build_supernet(Site(root=net, network="", args=(example,)), space)
    assert len(supernet.decisions) == len(sizes)
    whole = sum(parameter.numel() for parameter in net.parameters())
    for options in itertools.product(range(3), repeat=len(sizes)):
        architecture = {decision.name: option for decision, option in zip(supernet.decisions, options, strict=True)}
        supernet.activate(architecture)
        subnet = supernet.extract(architecture).eval()
        assert torch.equal(net(example), subnet(example))
        gone = sum(
            size * share for size, share in zip(sizes, [(0.75, 0.5, 0.0)[option] for option in options], strict=True)
        )
        assert supernet.measure(architecture, Parameters()) == whole - gone
        assert sum(parameter.numel() for parameter in subnet.parameters()) == whole - gone
