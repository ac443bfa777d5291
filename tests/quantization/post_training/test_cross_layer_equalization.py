import copy

import pytest
import torch
from torch import nn

from lightning_optim.quantization import CrossLayerEqualization, Symmetric
from lightning_optim.quantization.post_training.functional import equalizing_factors
from support import calibrated

PER_TENSOR = Symmetric(granularity="tensor")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def uneven(net):
    """Spread the channels that the first layer makes over three orders of magnitude."""
    with torch.no_grad():
        first = net[0]
        first.weight.mul_(torch.logspace(-2, 1, len(first.weight)).view(-1, *[1] * (first.weight.dim() - 1)))
    return net


def test_factors_give_both_ends_the_same_range():
    made, read = torch.rand(9) + 0.1, torch.rand(9) + 0.1
    factors = equalizing_factors(made, read)
    for channel in range(9):
        expected = (made[channel] * read[channel]) ** 0.5 / read[channel]
        assert factors[channel] == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(made / factors, read * factors)


def test_the_network_computes_the_same_with_even_ranges():
    net = uneven(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    batches = [torch.randn(64, 5)]
    before, simulator = net(batches[0]), calibrated(net, batches, PER_TENSOR)
    rounded = simulator.forward_of(net)(*batches)
    assert CrossLayerEqualization(num_rounds=1).apply(net, simulator, batches) == ("0", "2")
    assert torch.allclose(net(batches[0]), before, atol=1e-5)
    made, read = net[0].weight.abs().amax(1), net[2].weight.abs().amax(0)
    assert torch.allclose(made, read)
    again = calibrated(net, batches, PER_TENSOR).forward_of(net)(*batches)
    assert (again - before).square().mean() < 0.5 * (rounded - before).square().mean()


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 3)
        ),
        nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 3, 1)
        ),
    ],
)
def test_batch_norms_depthwise_convolutions_and_flattening_are_followed(net):
    uneven(net).eval()
    batches = [torch.randn(8, 2, 8, 8)]
    before = net(batches[0])
    changed = CrossLayerEqualization().apply(net, calibrated(net, batches, PER_TENSOR), batches)
    assert changed == tuple(name for name, module in net.named_children() if isinstance(module, (nn.Conv2d, nn.Linear)))
    assert torch.allclose(net(batches[0]), before, atol=1e-4)


@pytest.mark.parametrize("between", [nn.GELU(), nn.ReLU6(), nn.Sigmoid(), nn.LayerNorm(8)])
def test_what_does_not_pass_factors_on_is_left_alone(between):
    net = nn.Sequential(nn.Linear(5, 8), between, nn.Linear(8, 3)).eval()
    state, batches = copy.deepcopy(net.state_dict()), [torch.randn(64, 5)]
    assert CrossLayerEqualization().apply(net, calibrated(net, batches, PER_TENSOR), batches) == ()
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


def test_a_third_reader_keeps_a_pair_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.first(x).relu()
            return self.second(hidden) + hidden

    net, batches = Net().eval(), [torch.randn(16, 4)]
    assert CrossLayerEqualization().apply(net, calibrated(net, batches, PER_TENSOR), batches) == ()


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="num_rounds must be at least 1"):
        CrossLayerEqualization(num_rounds=0)
