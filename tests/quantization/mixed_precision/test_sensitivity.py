import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.quantization import (
    Affine,
    BitSensitivity,
    LayerLoss,
    LayerQuantizers,
    MovingAverage,
    Symmetric,
    UnitInterval,
    bit_sensitivity,
    divergence,
)
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator

BITS = [Symmetric(bits=6), Symmetric(bits=2)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 2, 9, 9, generator=generator) for rows in (8, 4)]


def simulated(net, layers, assigned):
    simulator = Simulator(Symmetric(), Affine(), MovingAverage(), layers)
    simulator.place(frozenset(), assigned)
    run_calibration(simulator, net, batches())
    return simulator.forward_of(net)


def test_each_loss_is_that_of_a_simulation_with_one_layer_changed(net):
    found = bit_sensitivity(net, batches(), BITS)
    assert found.bits == (2, 6)
    net.eval().requires_grad_(False)
    for layer in found.layers:
        for bits, value in zip(found.bits, layer.values, strict=True):
            own = {"own": LayerQuantizers(targets=Targets(), weight_quantizer=Symmetric(bits=bits))}
            forward = simulated(net, own, {layer.layer: "own"})
            errors = torch.cat([forward(x)["logits"] - net(x)["logits"] for x in batches()])
            assert value == pytest.approx(float(errors.square().mean()), rel=1e-5)
    plain = simulated(net, {}, {})
    errors = torch.cat([plain(x)["logits"] - net(x)["logits"] for x in batches()])
    assert found.base == pytest.approx(float(errors.square().mean()), rel=1e-5)


def test_weights_and_multiply_accumulates_are_counted(net):
    conv, fc = bit_sensitivity(net, batches(), BITS[:1]).layers
    assert (conv.layer, conv.num_weights, conv.macs) == ("conv", 4 * 9, 8 * 4 * 4 * 4 * 9)
    assert (fc.layer, fc.num_weights, fc.macs) == ("fc", 12, 8 * 12)


def test_multiply_accumulates_of_a_layer_that_is_called_by_keyword_are_counted(net):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            return self.fc(input=x)

    (layer,) = bit_sensitivity(Named(), [torch.randn(4, 7, 5)], BITS[:1]).layers
    assert (layer.layer, layer.macs) == ("fc", 4 * 7 * 5 * 3)


def test_the_network_stays_as_it_is(net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    bit_sensitivity(net, batches(), BITS)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_measure_of_ones_own_is_what_counts(net):
    x, seen = batches()[0], []

    def measure(forward):
        seen.append(forward(x)["logits"])
        return float(len(seen))

    found = bit_sensitivity(net, [x], BITS, measure=measure)
    assert sorted([found.base, *found.layers[0].values, *found.layers[1].values]) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len({tuple(logits.flatten().tolist()) for logits in seen}) == 5


def test_divergence_is_that_of_the_classes_probabilities(net):
    net.eval().requires_grad_(False)
    measure = divergence(net, batches())
    assert measure(net) == 0.0
    moved = measure(lambda x: {"logits": 2.0 * net(x)["logits"] + 1.0})
    logits = torch.cat([net(x)["logits"] for x in batches()])
    expected = F.kl_div((2.0 * logits).log_softmax(-1), logits.log_softmax(-1), reduction="batchmean", log_target=True)
    assert moved == pytest.approx(float(expected), rel=1e-5)
    found = bit_sensitivity(net, batches(), BITS, measure=measure)
    assert all(layer.values[0] > layer.values[1] > 0.0 for layer in found.layers)


def test_losses_are_above_the_base_and_never_grow_with_bits():
    layer = LayerLoss(layer="a", num_weights=1, macs=1, values=(3.0, 1.0, 2.0, 0.5))
    assert BitSensitivity(bits=(2, 3, 4, 8), base=1.0, layers=(layer,)).losses(layer) == [2.0, 1.0, 1.0, 0.0]


def test_tables_without_order_are_refused():
    layer = LayerLoss(layer="a", num_weights=1, macs=1, values=(3.0,))
    with pytest.raises(ValueError, match="bits must ascend"):
        BitSensitivity(bits=(4, 2), base=0.0, layers=())
    with pytest.raises(ValueError, match="a has 1 values for 2 widths"):
        BitSensitivity(bits=(2, 4), base=0.0, layers=(layer,))


@pytest.mark.parametrize(
    ("quantizers", "words"),
    [
        ([], "at least one"),
        ([Symmetric(bits=4), Symmetric(bits=4, granularity="tensor")], "different widths"),
        ([UnitInterval()], "quantizes activations"),
    ],
)
def test_quantizers_that_tell_no_widths_apart_are_refused(net, quantizers, words):
    with pytest.raises(ValueError, match=words):
        bit_sensitivity(net, batches(), quantizers)


def test_a_network_without_integer_layers_is_refused():
    class Scale(nn.Module):
        def forward(self, x):
            return x + x

    with pytest.raises(ValueError, match="no convolution or linear layer"):
        bit_sensitivity(Scale(), [torch.randn(3)], BITS)
