import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.errors import ExportError
from lightning_optim.export import Acceptance, ONNXRuntime, TensorRT, export_quantized
from lightning_optim.export.runtime.tensorrt import inspect_symmetric
from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.simulator import Simulator
from support import observe

INT8 = Symmetric(granularity="tensor", narrow_range=False)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.side = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(2, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, image):
        x = F.relu(self.norm(self.conv(image)) + self.side(image))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(64, 2, 6, 6)


def simulated(net, batch, activation):
    simulator = Simulator(Symmetric(), activation, MinMax())
    observe(simulator, net.eval(), batch)
    return simulator


def test_every_integer_is_int8_around_zero_and_biases_are_floats(tmp_path, batch):
    net = Net()
    simulator = simulated(net, batch, INT8)
    written = export_quantized(simulator, net, tmp_path / "model.onnx", runtime=TensorRT())
    model = onnx.load(written.path)
    kinds = {each.data_type for each in model.graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.INT64}
    assert not written.kernels.floating
    assert written.kernels.integer == {"Conv": 2, "Add": 1, "GlobalAveragePool": 1, "Gemm": 1}
    assert written.parity.exact_fraction >= 0.99
    assert written.runtime == "TensorRT"


def test_what_lies_below_the_range_saturates_as_simulated(tmp_path, batch):
    net = Net()
    with torch.no_grad():
        net.fc.bias.sub_(5.0)  # answers far below 0, the lowest of them beyond the range of a calmer batch
    simulator = simulated(net, 0.3 * batch, INT8)
    acceptance = Acceptance(batches=[3.0 * batch])
    written = export_quantized(simulator, net, tmp_path / "model.onnx", runtime=TensorRT(), acceptance=acceptance)
    assert written.parity.exact_fraction >= 0.99
    scale = simulator.ranges.qparams("fc:linear", torch.device("cpu"))[0]
    answers = simulator.forward_of(net)(3.0 * batch)
    assert (answers / scale).round().min() == -128


@pytest.mark.parametrize("activation", [Affine(), Symmetric(granularity="tensor")])
def test_other_activations_are_refused_with_the_setting_that_helps(tmp_path, batch, activation):
    net = Net()
    simulator = simulated(net, batch, activation)
    with pytest.raises(ExportError, match=r"TensorRT.*Symmetric\(granularity='tensor', narrow_range=False\)"):
        export_quantized(simulator, net, tmp_path / "model.onnx", runtime=TensorRT())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "fault", "message"),
    [
        (onnx.TensorProto.INT8, lambda array: array + 1 if array.ndim == 0 else array, "not int8 0"),
        (onnx.TensorProto.FLOAT, lambda array: array * 0 if array.ndim == 0 else array, "not positive"),
    ],
)
def test_a_file_that_tensorrt_would_refuse_is_found_out(tmp_path, batch, kind, fault, message):
    net = Net()
    simulator = simulated(net, batch, INT8)
    path = export_quantized(simulator, net, tmp_path / "model.onnx", runtime=TensorRT()).path
    model = onnx.load(path)
    for each in model.graph.initializer:
        if each.data_type == kind:
            changed = fault(onnx.numpy_helper.to_array(each)).astype(onnx.numpy_helper.to_array(each).dtype)
            each.CopyFrom(onnx.numpy_helper.from_array(np.asarray(changed), each.name))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=message):
        inspect_symmetric(path)


def test_the_file_of_another_runtime_is_none_for_tensorrt(tmp_path, batch):
    net = Net()
    simulator = simulated(net, batch, Affine())
    path = export_quantized(simulator, net, tmp_path / "model.onnx", runtime=ONNXRuntime()).path
    with pytest.raises(ExportError, match="TensorRT would refuse"):
        inspect_symmetric(path)
