import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.quantization import Affine, LayerQuantizers, MinMax, Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.layer_errors import compare_layers
from lightning_optim.quantization.simulation.simulator import Simulator

LAYERS = ("first", "second", "fc")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


def calibrated(net, batches, *, weight=None, activation=None, coarse=None):
    layers = {}
    if coarse:
        layers["coarse"] = LayerQuantizers(targets=Targets(include=[coarse]), weight_quantizer=Symmetric(bits=2))
    simulator = Simulator(weight or Symmetric(), activation or Affine(), MinMax(), layers)
    simulator.place(frozenset(), {coarse: "coarse"} if coarse else {})
    run_calibration(simulator, net, batches)
    return simulator


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches(net):
    return [torch.randn(8, 1, 8, 8) for _ in range(3)]


@pytest.mark.parametrize("coarse", LAYERS)
def test_a_layer_of_two_bits_stands_out_by_its_own_error_alone(net, batches, coarse):
    fine = {each.layer: each for each in compare_layers(calibrated(net, batches), net, batches)}
    found = {each.layer: each for each in compare_layers(calibrated(net, batches, coarse=coarse), net, batches)}
    assert found[coarse].own_sqnr < fine[coarse].own_sqnr - 15.0
    for name in set(LAYERS) - {coarse}:
        assert found[name].own_sqnr == pytest.approx(fine[name].own_sqnr, abs=1e-6)
        assert found[name].own_sqnr > 25.0


def test_the_error_of_a_layer_arrives_at_those_behind_it(net, batches):
    errors = {each.layer: each for each in compare_layers(calibrated(net, batches, coarse="first"), net, batches)}
    assert errors["first"].sqnr == errors["first"].own_sqnr
    assert errors["second"].sqnr < errors["second"].own_sqnr - 10.0


def test_the_last_error_is_that_of_the_whole_network(net, batches):
    simulator = calibrated(net, batches)
    simulated = simulator.forward_of(net)
    with torch.no_grad():
        wanted, found = torch.cat([net(x) for x in batches]), torch.cat([simulated(x) for x in batches])
    sqnr = 10.0 * torch.log10(wanted.square().sum() / (found - wanted).square().sum())
    *_, last = compare_layers(simulator, net, batches)
    assert last.sqnr == pytest.approx(float(sqnr), abs=1e-3)


def test_what_rounding_does_not_change_has_no_error(batches):
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    nn.init.ones_(net[0].weight)
    whole = [torch.arange(256.0).reshape(1, 1, 16, 16)]  # scale 1, so that uint8 holds every value
    simulator = calibrated(net, whole, weight=Symmetric(bits=2))
    (only,) = compare_layers(simulator, net, whole)
    assert (only.own_sqnr, only.sqnr) == (math.inf, math.inf)


def test_the_table_has_a_line_an_operator(net, batches):
    errors = compare_layers(calibrated(net, batches), net, batches)
    head, *lines = str(errors).splitlines()
    assert head.split() == ["operator", "own", "SQNR", "(dB)", "SQNR", "(dB)"]
    assert [line.split()[0] for line in lines] == [each.operator for each in errors]
    assert len(errors) == len(lines) >= 3


def test_modes_and_weights_stay(net, batches):
    simulator = calibrated(net, batches)
    net.fc.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compare_layers(simulator, net, batches)
    assert net.first.training
    assert not net.fc.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_comparison_needs_ranges_and_a_batch(net, batches):
    with pytest.raises(RuntimeError, match="no activation ranges"):
        compare_layers(Simulator(Symmetric(), Affine(), MinMax()), net, batches)
    with pytest.raises(ValueError, match="at least one batch"):
        compare_layers(calibrated(net, batches), net, [])
