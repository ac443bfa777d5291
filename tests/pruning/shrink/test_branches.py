import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.cost import count_macs
from lightning_optim.demo import VisionTransformer
from lightning_optim.pruning.shrink.branches import plan_bypass
from lightning_optim.surgery import apply_cut
from support import ReadsItsWeight, branches_of, without

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class BasicBlock(nn.Module):
    """As ResNets are written: one activation for both places, in place, and a sum in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def resnet():
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(stem, BasicBlock(), BasicBlock(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def onnx_nodes(net, batch):
    file = io.BytesIO()
    torch.onnx.export(net.eval(), (batch,), dynamo=True, verbose=False).save(file)
    file.seek(0)
    import onnx

    return len(onnx.load(file).graph.node)


@pytest.mark.parametrize(
    ("make", "batch", "gone"),
    [
        (resnet, IMAGES, {"1.conv1", "1.bn1", "1.conv2", "1.bn2"}),
        (
            lambda: VisionTransformer(dim=16, depth=2, hidden=32, num_heads=4),
            torch.randn(2, 1, 16, 16),
            {"blocks.0.norm1", "blocks.0.attention"},
        ),
    ],
    ids=["resnet", "transformer"],
)
def test_a_branch_that_is_taken_out_is_one_of_zeros_and_is_not_computed(make, batch, gone):
    torch.manual_seed(0)
    net = make().eval()
    branch = branches_of(net, batch)[0]
    plan, refused = plan_bypass(net, [branch], (batch,))
    assert (plan.keys(), refused) == (gone, {})
    small = copy.deepcopy(net)
    apply_cut(small, plan)
    torch.testing.assert_close(small(batch), without(net, branch)(batch))
    own = sum(net.get_parameter(name).numel() for name in branch.parameters)
    assert sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in small.parameters()) == own
    assert count_macs(small, (batch,)) < 0.75 * count_macs(net, (batch,))
    assert onnx_nodes(small, batch) < onnx_nodes(net, batch)
    small.train()(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_branch_that_the_code_asks_for_stays_and_the_others_go():
    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Linear(6, 6), ReadsItsWeight(6), nn.Linear(6, 6), Residual()), torch.randn(3, 6)
    branches = branches_of(net, batch)
    plan, refused = plan_bypass(net, branches, (batch,))
    assert plan.keys() == {"3.layer"}
    assert refused == {"1.layer.weight": "'Bypass' object has no attribute 'weight'"}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return x + F.dropout(self.layer(x), 0.5, self.training)


def test_all_branches_of_a_network_may_go():
    torch.manual_seed(0)
    net = resnet().eval()
    plan, refused = plan_bypass(net, branches_of(net, IMAGES), (IMAGES,))
    apply_cut(net, plan)
    assert not refused
    torch.testing.assert_close(net(IMAGES), net[5](net[0](IMAGES).mean((2, 3))))
