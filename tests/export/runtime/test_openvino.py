import importlib.util

import pytest
import torch
from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export import OpenVINO, export_quantized
from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.simulator import Simulator
from support import observe

INSTALLED = importlib.util.find_spec("openvino") is not None


class Net(nn.Module):
    """A convolution, a sum with a parameter, and a linear layer over tokens."""

    def __init__(self):
        super().__init__()
        self.patch, self.position, self.fc = (
            nn.Conv2d(1, 16, 2, 2),
            nn.Parameter(torch.randn(1, 9, 16)),
            nn.Linear(16, 4),
        )

    def forward(self, image):
        return self.fc(self.patch(image).flatten(2).transpose(1, 2) + self.position)[:, 0]


def simulated(net, batch, weight):
    simulator = Simulator(weight, Affine(), MinMax())
    observe(simulator, net.eval(), batch)
    return simulator


@pytest.mark.skipif(not INSTALLED, reason="needs openvino: pip install 'lightning-optim[openvino]'")
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_layers_run_in_integers_and_answer_as_simulated(tmp_path, bits):
    torch.manual_seed(0)
    net, batch = Net(), torch.randn(64, 1, 6, 6)
    written = export_quantized(
        simulated(net, batch, Symmetric(bits=bits)), net, tmp_path / "model.onnx", runtime=OpenVINO()
    )
    assert written.kernels.integer["Convolution"] == 1
    assert written.kernels.integer["FullyConnected"] == 1
    assert written.parity.top1_agreement >= 0.95
    assert written.integer_share == 1.0


class Scores(nn.Module):
    """A product of two activations, which OpenVINO computes in floating point, and a convolution in groups."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(16, 16, 1, groups=4), nn.Linear(16, 4)

    def forward(self, x):
        x = self.conv(x)
        return self.fc((x @ x.transpose(1, 2)) * 0.1)


@pytest.mark.skipif(not INSTALLED, reason="needs openvino: pip install 'lightning-optim[openvino]'")
@pytest.mark.filterwarnings("ignore:.* of the multiply-accumulates run in integers")
def test_what_openvino_leaves_in_floating_point_is_no_share_of_the_integers(tmp_path):
    torch.manual_seed(0)
    net, batch = Scores(), torch.randn(8, 16, 16)
    simulator = simulated(net, batch, Symmetric())
    written = export_quantized(simulator, net, tmp_path / "model.onnx", runtime=OpenVINO())
    conv, product, linear = 16 * 16 * 4, 16 * 16 * 16, 16 * 16 * 4
    products = 0 if "MatMul" in written.kernels.floating else product
    assert written.integer_share == pytest.approx((conv + products + linear) / (conv + product + linear))


@pytest.mark.skipif(INSTALLED, reason="openvino is installed")
def test_without_openvino_the_error_says_how_to_install_it(tmp_path):
    net, batch = Net(), torch.randn(8, 1, 6, 6)
    with pytest.raises(ExportError, match=r"pip install 'lightning-optim\[openvino\]'"):
        export_quantized(simulated(net, batch, Symmetric()), net, tmp_path / "model.onnx", runtime=OpenVINO())
    assert not list(tmp_path.iterdir())
