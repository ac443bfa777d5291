"""A fingerprint tells teachers apart by the names and values of their weights."""

import torch
from torch import nn

from lightning_optim.distillation.cache.fingerprint import weights_fingerprint


def net(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2, bias=bias), nn.BatchNorm1d(2))


def test_a_fingerprint_is_of_names_and_values():
    assert weights_fingerprint(net()) == weights_fingerprint(net())
    moved = net()
    moved[1].running_mean += 1e-6
    others = [net(1), net(bias=False), net().bfloat16(), net()[0], moved]
    assert len({weights_fingerprint(each) for each in [net(), *others]}) == 6
    assert weights_fingerprint(torch.compile(net(), backend="eager")) == weights_fingerprint(net())
