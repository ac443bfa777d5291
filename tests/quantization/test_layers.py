import pytest
import torch
from torch import nn

from lightning_optim import QATFakeQuant, Targets
from lightning_optim.errors import TargetError
from lightning_optim.quantization import Affine, Binary, LayerQuantizers, Symmetric
from lightning_optim.quantization.layers import assign_layers


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def entry(*names, **quantizers):
    return LayerQuantizers(targets=Targets(include=names), **(quantizers or {"weight_quantizer": Binary()}))


def calibrated(**layers):
    net, callback = network(), QATFakeQuant(layers=layers)
    data = [torch.randn(16, 4) for _ in range(4)]
    callback.calibrate(net, data)
    return net, callback, data[0]


def test_each_layer_computes_with_its_own_quantizers():
    net, callback, x = calibrated(
        hidden=entry("2", weight_quantizer=Symmetric(bits=2), activation_quantizer=Affine(bits=3)), top=entry("4")
    )
    seen = []
    net[4].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    out = callback.simulated(net)(x)
    simulator = callback._simulator
    # A hook sees what the layer is called with, before it is quantized: that is done here by hand.
    scale, zero = simulator.ranges.qparams("2:linear", torch.device("cpu"))
    assert scale.item() == pytest.approx(simulator.ranges.range_of("2:linear")[1] / 7)
    inner = Affine(bits=3).fake(seen[0], scale, zero)
    assert len(inner.unique()) <= 8
    weight, factor = net[4].weight, Binary().weight_scale(net[4].weight)
    rounded = factor.view(-1, 1) * torch.where(weight < 0, -1.0, 1.0)
    bias = torch.round(net[4].bias / (scale * factor)) * (scale * factor)
    expected = torch.nn.functional.linear(inner, rounded, bias)
    scale, zero = simulator.ranges.qparams("4:linear", torch.device("cpu"))
    assert (out - Affine().fake(expected, scale, zero)).abs().max() <= 1.01 * scale


def test_the_table_shows_the_bits_of_each_layer():
    _, callback, _ = calibrated(hidden=entry("2", activation_quantizer=Affine(bits=4)), top=entry("4"))
    cells = {line.split()[0]: line for line in callback.describe().splitlines()}
    assert " w8 a8 " in cells["0:linear"]
    assert " w8 a4 " in cells["2:linear"]
    assert " w1 a8 " in cells["4:linear"]


def test_without_entries_nothing_changes():
    net, callback, x = calibrated()
    other = QATFakeQuant(layers={"all": entry("*", weight_quantizer=Symmetric(), activation_quantizer=Affine())})
    torch.manual_seed(0)
    network()
    other.calibrate(net, [torch.randn(16, 4) for _ in range(4)])
    assert torch.equal(callback.simulated(net)(x), other.simulated(net)(x))


def test_what_was_assigned_is_in_the_state():
    net, callback, x = calibrated(top=entry("4"))
    fresh = QATFakeQuant(layers={"top": entry("4")})
    fresh.load_state_dict(callback.state_dict())
    assert torch.equal(fresh.simulated(net)(x), callback.simulated(net)(x))


def test_entries_that_match_nothing_or_one_layer_twice_are_refused():
    net = network()
    assert assign_layers(net, net, {"a": entry("0", "2")}) == {"0": "a", "2": "a"}
    with pytest.raises(TargetError, match="matches no module"):
        assign_layers(net, net, {"a": entry("nine")})
    root = nn.ModuleDict({"net": net, "other": nn.Linear(1, 1)})
    with pytest.raises(TargetError, match=r"layers\.a: targets match no module of Sequential"):
        assign_layers(root, net, {"a": entry("other")})
    with pytest.raises(ValueError, match=r"layers\.a and layers\.b both match '2'"):
        assign_layers(net, net, {"a": entry("0", "2"), "b": entry("2")})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LayerQuantizers(targets=Targets()), ValueError, "need a weight_quantizer or an activation_quantizer"),
        (
            lambda: LayerQuantizers(targets="a", weight_quantizer=Binary()),
            TypeError,
            "targets must be a Targets, got the string 'a'",
        ),
        (lambda: entry("0", weight_quantizer=8), TypeError, "weight_quantizer must be a Quantizer or None, got int 8"),
        (lambda: entry("0", activation_quantizer=Binary()), ValueError, "Binary quantizes weights"),
        (lambda: QATFakeQuant(layers={"a": 3}), TypeError, r"layers\['a'\] must be a LayerQuantizers"),
    ],
)
def test_wrong_entries_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
