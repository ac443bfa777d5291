import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.nas import NASWOT, SynFlow, ZenScore
from lightning_optim.nas.zero_cost.base import fresh_copy
from lightning_optim.surgery import Inputs

IMAGES = Inputs((torch.ones(2, 3, 8, 8),))
SCORES = [SynFlow(), NASWOT(num_samples=6), ZenScore(num_samples=4, num_draws=2)]
each_score = pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)


def convnet(width=8, depth=2):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def test_synflow_of_a_linear_network_is_its_flow_once_per_layer():
    # R = 1' |W2| |W1| 1 is linear in each layer, and by Euler's theorem each layer's sum of w dR/dw is R.
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    fresh = fresh_copy(net, 7)
    flow = (fresh[1].weight.double().abs() @ fresh[0].weight.double().abs()).sum()
    assert SynFlow().measure(net, Inputs((torch.randn(5, 4),)), seed=7) == pytest.approx(math.log(2.0 * float(flow)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 16)

    def forward(self, x):
        return F.silu(self.two(F.relu(self.one(x))))


def test_naswot_is_the_determinant_of_the_agreements_counted_by_hand():
    net, count, seed = Twice(), 5, 3
    fresh = fresh_copy(net, seed)
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        first = fresh.one(x)
        codes = torch.cat([first > 0, fresh.two(F.relu(first)) > 0], dim=1).tolist()
    agreeing = [[sum(a == b for a, b in zip(one, other, strict=True)) for other in codes] for one in codes]
    wanted = torch.linalg.slogdet(torch.tensor(agreeing, dtype=torch.float64))[1]
    got = NASWOT(num_samples=count).measure(net, Inputs((torch.ones(2, 4),)), seed=seed)
    assert got == pytest.approx(float(wanted))
    with pytest.raises(ValueError, match="calls none that it knows"):
        NASWOT().measure(nn.Linear(4, 2), Inputs((torch.ones(2, 4),)), seed=0)


def test_zen_score_by_hand():
    score, seed = ZenScore(num_samples=4, num_draws=1), 5
    net = convnet()
    normal = torch.Generator().manual_seed(seed)
    layers = copy.deepcopy(net).double().train()
    weights = [layers[0].weight, layers[3].weight, layers[8].weight]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn(weight.shape, generator=normal))
        x = torch.randn(4, 3, 8, 8, generator=normal)
        e = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed + 1_000_003))
        fresh = fresh_copy(net, seed)
        for place in (0, 3):
            layers[place].bias.copy_(fresh[place].bias)
        features, scale = [], 0.0
        for given in (x, x + 0.01 * e):
            value = given.double()
            for layer in layers[:6]:
                if isinstance(layer, nn.BatchNorm2d) and not features:
                    scale += 0.5 * math.log(float(value.var(dim=(0, 2, 3), unbiased=False).mean()))
                value = layer(value)
            features.append(value)
        change = float((features[0] - features[1]).flatten(1).norm(dim=1).mean())
    assert score.measure(net, IMAGES, seed=seed) == pytest.approx(math.log(change) + scale, rel=1e-4)


@each_score
def test_a_score_depends_on_the_architecture_and_the_seed_alone_and_changes_nothing(score):
    net = convnet()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    value = score.measure(net, IMAGES, seed=0)
    assert math.isfinite(value)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    torch.manual_seed(9)
    assert score.measure(convnet(), IMAGES, seed=0) == value
    assert score.measure(convnet(), IMAGES, seed=1) != value


@each_score
def test_wider_networks_score_higher(score):
    assert score.measure(convnet(32), IMAGES, seed=0) > score.measure(convnet(4), IMAGES, seed=0)


@each_score
def test_keyword_inputs_of_whole_numbers_are_taken(score):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 8)

        def forward(self, *, tokens, scale):
            return torch.relu(self.head(self.table(tokens).mean(1)) * scale)

    inputs = Inputs((), {"tokens": torch.tensor([[1, 2], [3, 4]]), "scale": torch.ones(2, 1)})
    assert isinstance(score.measure(Words(), inputs, seed=0), float)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_samples"):
        NASWOT(num_samples=1)
    for settings in ({"step": 0.0}, {"num_samples": 1}, {"num_draws": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ZenScore(**settings)
