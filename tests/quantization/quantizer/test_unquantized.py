import pytest
import torch
from torch import nn

from lightning_optim.quantization import Entropy, MeanSquaredError, MinMax, Operand, Percentile, Symmetric, Unquantized
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.scheme import Scheme
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.table import placement_rows

WEIGHT = Symmetric(bits=3, granularity="group", group_size=4)


@pytest.mark.parametrize("observer", [MinMax(), Percentile(), MeanSquaredError(), Entropy()])
def test_weights_alone_are_rounded(observer):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 12), nn.ReLU6(), nn.Linear(12, 3, bias=False)), 5.0 * torch.randn(16, 8)
    simulator = Simulator(WEIGHT, Unquantized(), observer)
    run_calibration(simulator, net, [x, x])

    def rounded(weight):
        groups = weight.detach().unflatten(1, (-1, 4))
        scale = groups.abs().amax(-1, keepdim=True) / 3
        return ((groups / scale).round() * scale).flatten(1)

    hidden = nn.functional.linear(x, rounded(net[0].weight), net[0].bias).clamp(0.0, 6.0)
    by_hand = nn.functional.linear(hidden, rounded(net[2].weight))
    assert torch.equal(simulator.forward_of(net)(x), by_hand)


def test_an_activation_gets_all_of_the_gradient():
    x = torch.tensor([-100.0, 0.3], requires_grad=True)
    Unquantized().fake(x, *Unquantized().qparams(torch.tensor(-1.0), torch.tensor(1.0))).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_it_is_for_activations_alone():
    check_operand(Unquantized(), Operand.ACTIVATION)
    with pytest.raises(ValueError, match="Unquantized quantizes activations, not weights"):
        check_operand(Unquantized(), Operand.WEIGHT)


@pytest.mark.parametrize(("bits", "signed"), [(8, "float"), (32, "int")])
def test_a_width_of_32_is_that_of_floats_alone(bits, signed):
    with pytest.raises(ValueError, match="bits must be a whole number"):
        Scheme(bits=bits, signed=signed, symmetric=True, granularity="tensor")


def test_the_table_says_that_they_are_not_quantized():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), torch.randn(4, 8)
    simulator = Simulator(WEIGHT, Unquantized(), MinMax())
    run_calibration(simulator, net.eval(), [x, x])
    (row,) = placement_rows(simulator.plan, simulator.ranges, simulator.bits_of)
    assert (row.computes, row.bits, row.note) == ("float", "w3 a32", "with 1, its activations are not quantized")
