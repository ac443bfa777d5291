import json

import torch
from torch import nn

from lightning_optim import Targets
from lightning_optim.cost import Parameters
from lightning_optim.nas import ElasticDepth, ElasticWidth
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def supernet():
    net = nn.Sequential(nn.Sequential(Block(), Block()), nn.Linear(4, 2))
    widths = ElasticWidth(targets=Targets(include=("0.*.up",)), fractions=(0.5, 1.0))
    depth = ElasticDepth(targets=Targets(include=("0",)))
    return build_supernet(Site(root=net, network="", args=(torch.zeros(3, 4),)), {"widths": widths, "depth": depth})


def test_a_space_says_what_can_vary_when_and_at_what_cost():
    # A block at full width takes 2 * 4 * 8 MACs, at half of it half as many; the head takes 8.
    assert str(supernet().describe()).splitlines() == [
        "3 decisions, 6 architectures",
        "MACs from 40 to 136, deciding one thing at a time; the own network has 136",
        "  0:depth       1 | [2]",
        "  0.0.up:width  4 | [8]",
        "  0.1.up:width  4 | [8]  only with 0:depth at 2",
    ]


def test_the_same_as_plain_data_in_any_cost():
    plain = supernet().describe(Parameters()).plain()
    assert json.loads(json.dumps(plain)) == plain
    head, block = 10, 4 * 8 + 8 + 8 * 4 + 4
    assert plain["cost"] == {
        "name": "Parameters", "cheapest": head + 4 * 4 + 4 + 4 * 4 + 4, "own": head + 2 * block,
        "dearest": head + 2 * block,
    }  # fmt: skip
    assert plain["num_architectures"] == 6
    assert plain["decisions"]["0.1.up:width"] == {"options": ["4", "8"], "own": "8", "only_with": {"0:depth": ["2"]}}


def test_the_cheapest_architecture_is_canonical():
    found = supernet()
    assert found.space.canonical(found.find_cheapest(Parameters())) == found.find_cheapest(Parameters())
