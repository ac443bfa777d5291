import pytest
import torch
from torch import nn

from lightning_optim.errors import TapError
from lightning_optim.surgery.readers import Readers


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.plain = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.norm_of_other, self.norm_of_one, self.norm_of_sum = (nn.BatchNorm2d(2) for _ in range(3))

    def forward(self, x):
        one, other = self.one(x), self.other(x)
        return self.norm_of_sum(self.norm_of_one(input=one) + self.norm_of_other(other) + self.plain(x))


def watched(net):
    followers = Readers()
    modules = dict(net.named_children())
    followers.attach(
        {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d)},
        {name: module for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)},
    )
    return followers


def test_each_norm_is_found_by_the_tensor_that_it_reads():
    net = Branches()
    followers = watched(net)
    followers.open()
    net(torch.zeros(1, 2, 3, 3))
    followers.take()
    assert followers.of("one") is net.norm_of_one
    assert followers.of("other") is net.norm_of_other
    assert followers.of("plain") is None
    assert not any(module._forward_hooks for module in net.modules())


def test_what_was_found_is_remembered():
    net = Branches()
    first = watched(net)
    first.open()
    net(torch.zeros(1, 2, 3, 3))
    first.take()
    again = watched(net)
    again.load_state_dict(first.state_dict())
    assert again.is_known
    assert again.of("one") is net.norm_of_one
    assert not any(module._forward_hooks for module in net.modules())


def test_a_pass_that_was_closed_does_not_count():
    net = Branches()
    followers = watched(net)
    followers.open()
    net(torch.zeros(1, 2, 3, 3))
    followers.close()
    assert not followers.is_known
    followers.open()
    with pytest.raises(TapError):
        followers.take()
