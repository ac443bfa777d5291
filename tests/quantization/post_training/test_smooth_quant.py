import copy

import pytest
import torch
from torch import nn

from lightning_optim.demo import VisionTransformer
from lightning_optim.quantization import SmoothQuant, Symmetric
from support import calibrated

PER_TENSOR = Symmetric(granularity="tensor")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_factors_are_the_papers():
    net, x = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).eval(), torch.randn(32, 4)
    gamma, weight = net[0].weight.detach().clone(), net[1].weight.detach().clone()
    outputs = net[0](x).detach()
    assert SmoothQuant(strength=0.7).apply(net, calibrated(net, [x], PER_TENSOR), [x[:20], x[20:]]) == ("1",)
    for channel in range(4):
        factor = outputs[:, channel].abs().max() ** 0.7 / weight[:, channel].abs().max() ** 0.3
        assert net[0].weight[channel].item() == pytest.approx((gamma[channel] / factor).item(), rel=1e-5)
        assert torch.allclose(net[1].weight[:, channel], weight[:, channel] * factor)


def test_a_transformer_with_outliers_computes_the_same_and_rounds_better():
    net, x = (
        VisionTransformer(resolution=8, patch=4, dim=16, depth=2, num_heads=2, hidden=32).eval(),
        torch.rand(16, 1, 8, 8),
    )
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight[3] *= 60.0
        for block in net.blocks:
            block.attention.qkv.weight[:, 3] /= 60.0
            block.fc1.weight[:, 3] /= 60.0
    before = net(x)
    rounded = calibrated(net, [x], PER_TENSOR).forward_of(net)(x)
    changed = SmoothQuant().apply(net, calibrated(net, [x], PER_TENSOR), [x])
    assert len(changed) >= 4
    assert torch.allclose(net(x), before, atol=1e-4)
    again = calibrated(net, [x], PER_TENSOR).forward_of(net)(x)
    assert (again - before).square().mean() < 0.5 * (rounded - before).square().mean()


def test_a_norm_that_a_sum_reads_too_is_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.norm(x)
            return x + self.fc(x)

    net, x = Net().eval(), torch.randn(8, 4)
    state = copy.deepcopy(net.state_dict())
    assert SmoothQuant().apply(net, calibrated(net, [x], PER_TENSOR), [x]) == ()
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


def test_a_strength_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]"):
        SmoothQuant(strength=1.5)
