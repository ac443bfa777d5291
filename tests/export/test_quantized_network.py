import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import QATFakeQuant, Targets
from lightning_optim.export import calibrate
from lightning_optim.quantization import CrossLayerEqualization, LayerQuantizers, MinMax, Symmetric


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.second = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(F.relu(self.second(F.relu(self.norm(self.conv(x))))).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches(net):
    return [torch.randn(8, 1, 8, 8) for _ in range(4)]


def test_the_file_is_that_of_the_callback_byte_by_byte(net, batches, tmp_path):
    settings = {"observer": MinMax(), "weight_quantizer": Symmetric(bits=6), "targets": Targets(exclude=["fc"])}
    callback = QATFakeQuant(**settings)
    callback.calibrate(net, batches, num_batches=3)
    quantized = calibrate(net, batches, num_batches=3, **settings)
    expected = callback.export(tmp_path / "callback.onnx", min_agreement=0.0)
    found = quantized.export(tmp_path / "alone.onnx", min_agreement=0.0)
    assert found.path.read_bytes() == expected.path.read_bytes()
    assert quantized.describe() == callback.describe()


def test_the_file_answers_as_simulated(net, batches, tmp_path):
    quantized = calibrate(net, batches)
    exported = quantized.export(tmp_path / "net.onnx", batches=batches)
    assert exported.parity.max_abs_error < 0.01
    assert quantized.verify(exported.path, batches).exact_fraction == 1.0


def test_a_layer_of_few_bits_has_the_largest_error(net, batches):
    coarse = LayerQuantizers(targets=Targets(include=["second"]), weight_quantizer=Symmetric(bits=2))
    errors = calibrate(net, batches, layers={"coarse": coarse}).compare_layers(batches)
    assert min(errors, key=lambda each: each.own_sqnr).layer == "second"


@pytest.mark.parametrize("named", [True, False])
def test_inputs_may_be_named_or_several(net, batches, named, tmp_path):
    given = [{"x": x} if named else (x,) for x in batches]
    quantized, plain = calibrate(net, given), calibrate(net, batches)
    assert torch.equal(quantized.simulated()(batches[0]), plain.simulated()(batches[0]))
    assert str(quantized.compare_layers(given)) == str(plain.compare_layers(batches))
    assert quantized.export(tmp_path / "net.onnx", batches=given, min_agreement=0.0).parity.num_samples == 32


def test_modes_and_weights_stay(net, batches, tmp_path):
    net.second.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quantized = calibrate(net, batches)
    quantized.simulated()(batches[0])
    quantized.export(tmp_path / "net.onnx", min_agreement=0.0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
    assert net.norm.training
    assert not net.second.training
    assert "forward" not in vars(net)


def test_methods_change_the_weights_and_without_data_nothing_does(net, batches):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for data, broken in (([], {}), (batches, {"num_batches": 0}), ([torch.full((1, 1, 8, 8), float("nan"))], {})):
        with pytest.raises(ValueError, match=r"batch"):
            calibrate(net, data, methods=[CrossLayerEqualization()], **broken)
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert net.training
    calibrate(net, batches, methods=[CrossLayerEqualization()])
    assert not torch.equal(before["second.weight"], net.second.weight)


def test_what_is_no_quantizer_is_refused(net, batches):
    with pytest.raises(TypeError, match="observer must be"):
        calibrate(net, batches, observer=Symmetric())
