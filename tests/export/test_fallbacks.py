"""What has no integer kernel stays in floating point, by name, or is refused; the share in integers is told."""

import ast
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import QATFakeQuant, Targets
from lightning_optim.cost import count_macs
from lightning_optim.errors import ExportError
from lightning_optim.export import Acceptance, calibrate, export_onnx, export_quantized, load_session
from lightning_optim.quantization import Symmetric, Unquantized
from lightning_optim.quantization.simulation.table import integer_share, placement_rows, say_share
from support import train_simulated


class HardSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        x = x * self.act(x + 3) / 6
        return self.fc(x.mean([2, 3]))


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(self.up(self.conv(x).relu()))


class Mean(nn.Module):
    """The mean over the last axis, which normalizations take too: not of integers."""

    def forward(self, x):
        return x.mean(-1)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv1d(3, 16, 5), Mean(), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x.flatten(2)).relu()))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv3d(3, 8, 3), nn.AvgPool3d((1, 2, 2)), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x.unsqueeze(2).expand(-1, -1, 4, -1, -1)).relu()
        return self.fc(F.adaptive_avg_pool3d(self.pool(x), 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.embed, self.layer, self.fc = nn.Linear(48, 16), kind(16, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.layer(self.embed(x.transpose(1, 2).flatten(2)))[0][:, -1])


NETWORKS = {kind.__name__: kind for kind in (HardSwish, Upsampling, Line, Volume, Recurrent)}
NAMED = {
    "HardSwish": {":float add[conv]"},
    "Upsampling": {"up:float conv_transpose2d"},
    "Line": {"pool:float mean"},
    "Volume": set(),  # the plan has no integers for windows of a volume, the runtime has
    "Recurrent": {"layer:float lstm"},
}
pytestmark = pytest.mark.filterwarnings("ignore:.* of the multiply-accumulates run in integers")


def batches():
    torch.manual_seed(1)
    return [torch.randn(8, 3, 16, 16) for _ in range(3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_has_no_integer_kernel_is_named_and_computes_as_simulated(tmp_path, name):
    net = NETWORKS[name]()
    quantized = calibrate(net, batches())
    written = quantized.export(tmp_path / "model.onnx")
    assert set(written.fallbacks) == NAMED[name]
    assert written.integer_share == pytest.approx(share_of_operators(net, quantized))
    x = torch.cat(batches())
    simulated = quantized.simulated()(x)
    deployed = torch.as_tensor(load_session(written.path).run(x.numpy())[0])
    step = quantized.simulator.ranges.qparams(list(quantized.simulator.plan.operators)[-1], torch.device("cpu"))[0]
    assert (simulated - deployed).abs().max() <= 1.01 * step
    assert quantized.describe().endswith(f"MACs in integers: {say_share(written.integer_share)}")


def share_of_operators(net, quantized):
    simulator = quantized.simulator
    rows = placement_rows(simulator.plan, simulator.ranges, simulator.bits_of)
    assert sum(row.macs for row in rows) == count_macs(net, simulator.example[0])
    return integer_share(rows)


@pytest.mark.parametrize("name", [name for name in NETWORKS if NAMED[name]])
def test_advice_of_a_refusal_helps(tmp_path, name):
    quantized = calibrate(NETWORKS[name](), batches())
    with pytest.raises(ExportError, match="would run in floating point") as refusal:
        quantized.export(tmp_path / "model.onnx", fallbacks="refused")
    assert not list(tmp_path.iterdir())
    assert "exclude" not in str(refusal.value)  # it would not help for what runs in the network's own forward
    listed = ast.literal_eval(re.search(r"fallbacks=(\[.*?\])", str(refusal.value))[1])
    assert quantized.export(tmp_path / "some.onnx", fallbacks=listed).path.is_file()
    assert quantized.export(tmp_path / "all.onnx", fallbacks="named").path.is_file()


@pytest.mark.parametrize(("net", "name"), [(Upsampling(), "up"), (Line(), "pool"), (Recurrent(), "layer")])
def test_a_layer_that_is_excluded_is_no_fallback_to_refuse(tmp_path, net, name):
    quantized = calibrate(net, batches(), targets=Targets(exclude=[name]))
    written = quantized.export(tmp_path / "model.onnx", fallbacks="refused")
    assert set(written.fallbacks.values()) == {"left out by targets"}


def test_a_sequence_allows_exactly_its_kernels(tmp_path):
    class Both(Upsampling):
        def forward(self, x):
            return super().forward(x + 1.0)

    quantized = calibrate(Both(), batches())
    with pytest.raises(ExportError, match=r"1 ConvTranspose would run.*fallbacks=\['Add', 'ConvTranspose'\]"):
        quantized.export(tmp_path / "model.onnx", fallbacks=["Add"])
    assert quantized.export(tmp_path / "model.onnx", fallbacks=["Add", "ConvTranspose"]).path.is_file()


def test_a_small_share_in_integers_is_warned_about_with_what_costs_most(tmp_path):
    quantized = calibrate(Upsampling(), batches())
    told = r"59\.4 % of the multiply-accumulates run in integers.*up:float conv_transpose2d with 40\.5 % of them"
    with pytest.warns(UserWarning, match=told):
        quantized.export(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        calibrate(Line(), batches()).export(tmp_path / "line.onnx")


class Summed(nn.Module):
    """What it multiplies has no integer kernel; a sum of two activations has."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 5, 2, 2)

    def forward(self, x):
        return self.up(x + x.relu())


def test_a_file_that_multiplies_nothing_in_integers_is_refused_and_its_advice_helps(tmp_path):
    net = Summed()
    quantized = calibrate(net, batches())
    with pytest.raises(ExportError, match=r"no multiply-accumulate would run in integers.*export\.export_onnx"):
        quantized.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert export_onnx(net, batches()[:1], tmp_path / "model.onnx").is_file()


def test_integer_weights_beside_floats_were_asked_for_and_are_written(tmp_path):
    quantized = calibrate(Line(), batches(), activation_quantizer=Unquantized())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert quantized.export(tmp_path / "model.onnx").integer_share == 0.0


def test_the_callback_hands_the_setting_on(tmp_path):
    net = Upsampling()
    callback = QATFakeQuant()
    callback.calibrate(net, batches())
    assert callback.describe().endswith("MACs in integers: 59.4 %")
    with pytest.raises(ExportError, match="1 ConvTranspose would run in floating point"):
        callback.export(tmp_path / "model.onnx", net, fallbacks="refused")
    assert set(callback.export(tmp_path / "model.onnx", net).fallbacks) == NAMED["Upsampling"]


@pytest.mark.parametrize("given", ["float", "Add", True, None, [1]])
def test_another_setting_is_refused(given):
    with pytest.raises(ValueError, match=r"fallbacks must be 'named', 'refused', or a sequence of the kernels"):
        Acceptance(fallbacks=given)


def test_a_setting_without_a_kernel_is_refused_whatever_the_fallbacks(tmp_path):
    groups = Symmetric(granularity="group", group_size=3)
    net = Line()
    with pytest.raises(ExportError, match=r"0? ?conv:conv1d.*targets\.exclude") as refusal:
        calibrate(net, batches(), weight_quantizer=groups).export(tmp_path / "model.onnx", fallbacks="named")
    assert "conv:conv1d" in str(refusal.value)


def test_a_network_of_which_all_multiplies_in_integers_has_a_share_of_one(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    written = export_quantized(train_simulated(net, steps=4), net, tmp_path / "model.onnx")
    assert (written.integer_share, written.fallbacks) == (1.0, {})
