import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.errors import ArtefactError, ExportError
from lightning_optim.export import export_quantized, verify
from lightning_optim.export.emulator import operators
from lightning_optim.export.emulator.arithmetic import Integers
from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator
from support import bright_corners, train_simulated


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two, self.short = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(8, 12, 1, 2)
        self.fc = nn.Linear(12, 4)

    def forward(self, image):
        x = F.relu(self.norm(self.stem(image)))
        y = F.relu(self.two(F.relu(self.one(x))) + self.short(x))
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 8, 3, 1, 1), nn.Linear(16 * 16, 4, bias=False)
        self.deep, self.point = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 16, 1)

    def forward(self, image):
        x = F.relu6(self.point(F.relu(self.deep(F.relu(self.stem(image))))))
        return self.fc(F.avg_pool2d(x, 3, 2, 1).flatten(1))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.more, self.fc = nn.Conv2d(1, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 2, dilation=2), nn.Linear(12, 4)

    def forward(self, image):
        x = F.max_pool2d(F.relu(self.stem(image)), 2)
        return self.fc(torch.cat([x, F.relu(self.more(x))], 1).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(1, 16, 2, 2), nn.LayerNorm(16)
        self.qkv, self.out, self.fc = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) * 0.25).softmax(-1) @ v)
        return self.fc(x.mean(1))


def written(net, path, steps=24, weight=None):
    """Train a net, simulated, and export it."""
    return export_quantized(train_simulated(net, steps, weight=weight), net, path)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    torch.manual_seed(0)
    return written(Residual(), tmp_path_factory.mktemp("residual") / "model.onnx")


@pytest.mark.parametrize("kind", [Residual, Depthwise, Dense])
def test_a_trained_net_is_computed_to_the_bit(tmp_path, residual, kind):
    export = residual if kind is Residual else written(kind(), tmp_path / "model.onnx")
    x, _ = bright_corners(1000)
    found = verify(export.path, x.split(250))
    assert (found.compared, found.exact_fraction, found.worst_lsb, found.worst_error) == (4000, 1.0, 0.0, 0.0)
    kernels = {name: count for name, count in export.kernels.integer.items() if "MaxPool" not in name}
    moved = kernels.pop("QLinearConcat", 0)
    assert sum(found.computed.values()) == sum(kernels.values()), (moved, found.computed)


def test_few_bits_are_read_from_where_they_are_packed(tmp_path):
    export = written(Residual(), tmp_path / "model.onnx", weight=Symmetric(bits=3))
    kinds = {each.data_type for each in onnx.load(export.path).graph.initializer}
    assert onnx.TensorProto.INT4 in kinds
    assert verify(export.path, bright_corners(200)[0].split(100)).exact_fraction == 1.0


@pytest.mark.parametrize(("kind", "bits"), [(Residual, 2), (Residual, 4), (Dense, 3)])
def test_activations_of_few_bits_are_computed_to_the_bit(tmp_path, kind, bits):
    torch.manual_seed(0)
    net, simulator = kind(), Simulator(Symmetric(), Affine(bits=bits), MinMax())
    run_calibration(simulator, net, bright_corners(64)[0].split(32))
    path = export_quantized(simulator, net, tmp_path / "model.onnx").path
    found = verify(path, (3 * bright_corners(256)[0]).split(64))
    assert (found.compared, found.exact_fraction) == (1024, 1.0)


def test_a_transformer_may_round_between_float_operators_another_way(tmp_path):
    export = written(Attention(), tmp_path / "model.onnx")
    found = verify(export.path, bright_corners(500)[0].split(250))
    assert found.computed["MatMul"] == 2
    assert found.computed["Gemm"] == 3
    assert found.exact_fraction >= 0.99
    assert found.worst_lsb <= 2.01


def test_a_sum_that_is_not_rounded_is_run_in_floating_point(tmp_path):
    class Shifted(Residual):
        def forward(self, image):
            return super().forward(image) * 2.0

    found = verify(written(Shifted(), tmp_path / "model.onnx").path, bright_corners(200)[0].split(100))
    assert found.exact_fraction == 1.0
    assert found.worst_lsb == 0.0


def test_an_arithmetic_that_is_not_the_runtimes_is_found_out(residual, monkeypatch):
    def early(accumulator, multiplier, qparams):  # ties, and what is near them, go up
        return Integers((accumulator.float() * multiplier + qparams.zero_point + 0.01).round().clamp(0, 255), qparams)

    monkeypatch.setattr(operators, "requantize", early)
    found = verify(residual.path, [bright_corners(500)[0]])
    assert 0.5 < found.exact_fraction < 1.0
    assert found.worst_lsb >= 0.99


def test_wrong_input_is_refused(tmp_path, residual):
    with pytest.raises(ArtefactError, match="no ONNX model"):
        verify(tmp_path / "none.onnx", [torch.zeros(1, 1, 8, 8)])
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ArtefactError):
        verify(tmp_path / "text.onnx", [torch.zeros(1, 1, 8, 8)])
    with pytest.raises(ExportError, match="at least one batch"):
        verify(residual.path, [])
    with pytest.raises(ValueError, match="takes 1 inputs"):
        verify(residual.path, [(torch.zeros(1, 1, 8, 8), torch.zeros(1))])
