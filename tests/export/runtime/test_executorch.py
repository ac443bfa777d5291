import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.errors import ExportError
from lightning_optim.export import Acceptance, ExecuTorch, export_quantized
from lightning_optim.quantization import Affine, MinMax, Symmetric, Unquantized
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator
from support import PooledSums

INSTALLED = importlib.util.find_spec("executorch") is not None
needs_executorch = pytest.mark.skipif(
    not INSTALLED, reason="needs executorch: pip install 'lightning-optim[executorch]'"
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.position = nn.Conv2d(1, 16, 2, 2), nn.Parameter(torch.randn(1, 16, 16) * 0.02)
        self.qkv, self.fc = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.fc((x + (q @ k.transpose(1, 2) * 0.25).softmax(-1) @ v)[:, 0])


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(72, 4)

    def forward(self, image):
        return self.fc(F.avg_pool2d(self.conv(image), 2).flatten(1))


def simulated(net, x, weight=None, activation=None):
    simulator = Simulator(weight or Symmetric(), activation or Affine(), MinMax())
    run_calibration(simulator, net.eval(), [x, x])
    return simulator


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@needs_executorch
@pytest.mark.parametrize(
    ("weight", "activation"),
    [(Symmetric(), Affine()), (Symmetric(bits=4), Symmetric(granularity="tensor", narrow_range=False))],
)
def test_all_layers_run_in_integers_and_answer_as_simulated(tmp_path, weight, activation):
    net, x = PooledSums(), torch.randn(80, 1, 8, 8)
    simulator = simulated(net, x, weight, activation)
    accept = Acceptance(batches=[x, x[:1]], min_agreement=0.97)
    written = export_quantized(simulator, net, tmp_path / "model.pte", runtime=ExecuTorch(), acceptance=accept)
    assert not written.kernels.floating
    assert written.kernels.integer["Add"] == written.kernels.integer["GlobalAvgPooling2d"] == 1
    assert written.kernels.integer["FullyConnected"] == 1
    assert sum(count for kind, count in written.kernels.integer.items() if "Conv2d" in kind) == 3
    step = simulator.ranges.qparams("fc:linear", torch.device("cpu"))[0]
    assert written.parity.max_abs_error <= 1.01 * step
    assert written.parity.exact_fraction >= 0.97
    assert not written.fallbacks


@needs_executorch
def test_products_of_two_activations_are_named_as_floats(tmp_path):
    net, x = Attention(), torch.randn(40, 1, 8, 8)
    simulator = simulated(net, x)
    written = export_quantized(
        simulator, net, tmp_path / "model.pte", runtime=ExecuTorch(max_batch=8), acceptance=Acceptance(batches=[x])
    )
    assert set(written.fallbacks) == {":matmul[qkv]", ":matmul[qkv]#2"}
    assert written.kernels.floating["BatchMatrixMultiply"] == 2
    assert written.kernels.integer["FullyConnected"] == 2
    assert written.parity.top1_agreement >= 0.95


@needs_executorch
def test_averages_over_windows_are_refused_unless_allowed(tmp_path):
    net, x = Windows(), torch.randn(8, 1, 8, 8)
    simulator = simulated(net, x)
    with pytest.raises(ExportError, match=r"1 AvgPooling2d would run in floating point"):
        export_quantized(
            simulator, net, tmp_path / "model.pte", runtime=ExecuTorch(), acceptance=Acceptance(fallbacks="refused")
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(INSTALLED, reason="executorch is installed")
def test_without_executorch_the_error_says_how_to_install_it(tmp_path):
    net, x = Windows(), torch.randn(8, 1, 8, 8)
    with pytest.raises(ExportError, match=r"pip install 'lightning-optim\[executorch\]'"):
        export_quantized(simulated(net, x), net, tmp_path / "model.pte", runtime=ExecuTorch())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weight", "activation", "why"),
    [
        (Symmetric(), Affine(bits=4), "all 256 integers"),
        (Symmetric(), Symmetric(granularity="tensor"), "all 256 integers"),  # -128 is what XNNPACK clips to
        (Symmetric(), Unquantized(), "all 256 integers"),
        (Symmetric(granularity="group", group_size=1), Affine(), "a scale per tensor or per channel"),
    ],
)
def test_integers_without_a_kernel_are_refused(tmp_path, weight, activation, why):
    net, x = Windows(), torch.randn(8, 1, 8, 8)
    with pytest.raises(ExportError, match=f"XNNPACK's integer kernels need .*{why}"):
        export_quantized(simulated(net, x, weight, activation), net, tmp_path / "model.pte", runtime=ExecuTorch())


@pytest.mark.parametrize("largest", [0, -1])
def test_a_largest_batch_below_one_is_refused(largest):
    with pytest.raises(ValueError, match="max_batch must be a whole number of at least 1"):
        ExecuTorch(max_batch=largest)


@pytest.mark.parametrize("largest", [1.5, True])
def test_a_largest_batch_that_is_no_integer_is_refused(largest):
    with pytest.raises(TypeError, match="max_batch must be an integer"):
        ExecuTorch(max_batch=largest)
