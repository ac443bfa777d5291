import copy

import pytest
import torch
from torch import nn

from lightning_optim.demo import VisionTransformer
from support import branches_of, without

IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


class Sum(nn.Module):
    """A value and a branch of it."""

    def __init__(self, branch, skip=None):
        super().__init__()
        self.branch, self.skip = branch, skip or nn.Identity()

    def forward(self, x):
        return self.skip(x) + self.branch(x)


class Nothing(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


class Gate(nn.Module):
    """Squeeze and excite: weights of the branch that are no part of its sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Read(nn.Module):
    """A branch that something else reads midway."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        middle = self.first(x)
        return (x + self.second(middle)).relu() + middle


class Shared(nn.Module):
    """A branch whose last layer serves another place too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x + self.conv(x))


def convolution():
    return nn.Conv2d(4, 4, 3, padding=1)


@pytest.mark.parametrize(
    "branch",
    [
        convolution(),
        nn.Sequential(convolution(), nn.ReLU(), convolution(), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.Sequential(nn.GroupNorm(2, 4), convolution(), nn.ReLU()),
        nn.Sequential(convolution(), nn.GroupNorm(2, 4), nn.SiLU()),
        Gate(),
        nn.Sequential(convolution(), Sum(convolution())),
    ],
    ids=["plain", "batch norm", "pre-norm", "post-norm", "gate", "nested"],
)
def test_a_branch_of_zeros_is_no_branch(branch):
    torch.manual_seed(0)
    net = nn.Sequential(convolution(), Sum(branch), nn.ReLU(), convolution()).eval()
    for parameter in net.parameters():  # norms that start at one and zero would hide a forgotten bias
        nn.init.normal_(parameter)
    found = [
        entry
        for entry in branches_of(net, IMAGES)
        if entry.name.startswith("1.branch") and ".1.branch" not in entry.name
    ]
    bypassed = copy.deepcopy(net)
    bypassed[1].branch = Nothing()
    if isinstance(branch, nn.Sequential) and isinstance(branch[-1], Sum):
        assert found == []  # it ends in a sum, which zeros of one layer do not make zero
        return
    (entry,) = found
    assert set(entry.parameters) == {f"1.branch.{name}" for name, _ in branch.named_parameters()}
    assert torch.equal(without(net, entry)(IMAGES), bypassed(IMAGES))
    assert not torch.allclose(net(IMAGES), bypassed(IMAGES))


def test_every_attention_and_perceptron_of_a_transformer_is_a_branch():
    torch.manual_seed(0)
    net = VisionTransformer(dim=16, depth=2, hidden=32, num_heads=4).eval()
    batch = torch.randn(2, 1, 16, 16)
    found = branches_of(net, batch)
    assert [branch.name for branch in found] == [
        f"blocks.{block}.{last}.weight" for block in range(2) for last in ("attention.proj", "fc2")
    ]
    bypassed = copy.deepcopy(net)
    bypassed.blocks[1].attention.forward = torch.zeros_like
    assert torch.equal(without(net, found[2])(batch), bypassed(batch))


@pytest.mark.parametrize(
    "net",
    [
        Sum(convolution(), skip=nn.Conv2d(4, 4, 1)),
        Sum(nn.Sequential(convolution(), nn.Sigmoid())),
        Sum(nn.Sequential(convolution(), nn.BatchNorm2d(4, affine=False))),
        Sum(nn.AvgPool2d(3, 1, 1)),
        Read(),
        Shared(),
        nn.Sequential(convolution(), nn.ReLU()),
    ],
    ids=["projected skip", "sigmoid", "norm without weights", "pool", "read midway", "shared", "no sum"],
)
def test_what_zeros_would_not_make_a_plain_skip_is_no_branch(net):
    assert branches_of(nn.Sequential(nn.Conv2d(4, 4, 1), net), IMAGES) == ()
