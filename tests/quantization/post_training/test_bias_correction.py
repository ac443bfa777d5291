import pytest
import torch
from torch import nn

from lightning_optim.quantization import BiasCorrection, Symmetric
from support import calibrated


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_bias_loses_the_mean_error_of_the_weights():
    net = nn.Sequential(nn.Linear(6, 4)).eval()
    x = torch.randint(0, 256, (40, 6)) / 255.0  # on the grid of the activations
    x[0], x[1] = 0.0, 1.0
    weight, bias = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    simulator = calibrated(net, [x], Symmetric(bits=3))
    assert BiasCorrection().apply(net, simulator, [x[:25], x[25:]]) == ("0",)
    step = weight.abs().amax(1, keepdim=True) / 3
    error = (weight / step).round() * step - weight
    assert torch.allclose(net[0].bias, bias - error @ x.mean(0), atol=step.max().item() / 255)
    assert torch.equal(net[0].weight, weight)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
        ),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4)),
    ],
)
def test_outputs_have_the_mean_they_had(net):
    net.train()
    for _ in range(20):
        net(torch.rand(32, 1, 6, 6))
    net.eval()
    batches = [torch.rand(32, 1, 6, 6) for _ in range(4)]
    simulator, x = calibrated(net, batches, Symmetric(bits=3)), torch.cat(batches)
    wanted = net(x).mean(0)
    before = simulator.forward_of(net)(x).mean(0)
    BiasCorrection().apply(net, simulator, batches)
    after = simulator.forward_of(net)(x).mean(0)
    groups = wanted.view(4, -1).mean(1), before.view(4, -1).mean(1), after.view(4, -1).mean(1)
    assert (groups[2] - groups[0]).abs().max() < 0.1 * (groups[1] - groups[0]).abs().max()


def test_a_layer_without_bias_is_left_alone():
    net, x = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.rand(16, 4)
    assert BiasCorrection().apply(net, calibrated(net, [x], Symmetric(bits=3)), [x]) == ("2",)
    assert "forward" not in vars(net)


def test_a_network_that_is_a_layer_is_corrected():
    net, x = nn.Linear(4, 2), torch.rand(16, 4)
    assert BiasCorrection().apply(net, calibrated(net, [x], Symmetric(bits=3)), [x]) == ("",)
