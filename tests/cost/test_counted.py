"""What a network is said to cost with fewer channels is what it costs once they are cut."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.cost import MACs, Parameters, Subject, WeightBytes, count_macs, count_parameters
from lightning_optim.demo import ResidualNet, VisionTransformer
from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.coupling import keep_channels
from lightning_optim.surgery import Inputs, apply_cut


class Odd(nn.Module):
    """Concatenation, a flatten, depthwise, grouped and transposed convolutions, a product of two activations."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(11, 6, 3, padding=1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.left, self.right, self.head = nn.Linear(4 * 64, 10), nn.Linear(4 * 64, 10), nn.Linear(10, 3)
        self.register_buffer("shift", torch.zeros(8, 1, 1))

    def forward(self, x):
        x = torch.cat([x, F.relu(self.one(x)) + self.shift], 1)
        x = self.up(F.relu(self.grouped(F.relu(self.deep(self.two(x))))))
        x = x.flatten(1)
        mixed = self.left(x).unsqueeze(2) @ self.right(x).unsqueeze(1)
        return self.head(mixed.mean(2))


CASES = {
    "residual": (lambda: ResidualNet(widths=(8, 16)), (1, 16, 16)),
    "transformer": (lambda: VisionTransformer(dim=16, depth=2, hidden=24), (1, 16, 16)),
    "odd": (Odd, (3, 4, 4)),
}


@pytest.fixture(params=CASES)
def priced(request):
    torch.manual_seed(0)
    make, shape = CASES[request.param]
    network, batch = make(), torch.randn(2, *shape)
    coupling = couple(capture_network(network, (batch,)))
    return network, batch, coupling, {group.name: group for group in coupling.groups if group.size > 1}


def bytes_of(network):
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    ("cost", "count"),
    [
        (Parameters(), lambda network, batch: count_parameters(network)),
        (MACs(), lambda network, batch: count_macs(network, (batch,))),
        (WeightBytes(), lambda network, batch: bytes_of(network)),
    ],
    ids=["parameters", "macs", "bytes"],
)
def test_the_price_of_fewer_channels_is_the_cost_of_the_cut_network(priced, cost, count):
    network, batch, coupling, pools = priced
    prices = cost.prices(Subject(network, coupling, pools, (batch,)))
    assert prices.full == cost.measure(network, Inputs.of(batch)) == count(network, batch)
    for share in (0.75, 0.5):
        kept = {name: max(1, round(share * group.size)) for name, group in pools.items()}
        small = copy.deepcopy(network)
        apply_cut(small, keep_channels((group, torch.arange(kept[name])) for name, group in pools.items()))
        assert prices(kept) == pytest.approx(count(small, batch))


def test_a_shared_weight_is_measured_once():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    inputs = Inputs.of(torch.randn(3, 4))
    assert Parameters().measure(network, inputs) == 16 + 3 * 4 + 4
    assert WeightBytes().measure(network, inputs) == 4 * (16 + 3 * 4 + 4 + 2 * 4) + 8  # int64: num_batches_tracked
    assert MACs().measure(network, inputs) == 3 * 2 * 16


def test_a_pool_counts_the_weights_that_make_and_read_it():
    network, batch = ResidualNet(widths=(8, 16)), torch.randn(2, 1, 16, 16)
    coupling = couple(capture_network(network, (batch,)))
    prices = Parameters().prices(Subject(network, coupling, {group.name: group for group in coupling.groups}, (batch,)))
    assert {name: pool.uses for name, pool in prices.pools.items()} == {
        "stem.weight": 5,
        "layers.0.conv1.weight": 2,
        "layers.1.conv1.weight": 2,
        "layers.1.conv2.weight": 3,
    }


def test_what_has_no_rule_of_its_own_is_counted_as_fixed():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(F.relu(self.head(self.lstm(x)[0])))

    network, batch = Recurrent(), torch.randn(2, 5, 4)
    coupling = couple(capture_network(network, (batch,)))
    pools = {group.name: group for group in coupling.groups if group.name == "head.weight"}
    prices = MACs().prices(Subject(network, coupling, pools, (batch,)))
    assert prices.full == count_macs(network, (batch,))
    assert prices.full - prices({"head.weight": 4}) == 2 * 5 * 4 * (6 + 2)
