"""Layers whose weights no integer kernel reads are named in the first batch, and count as what they are."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_optim import QATFakeQuant, Targets
from lightning_optim.errors import TargetError
from lightning_optim.export import calibrate, export_onnx
from support import quiet


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.fc, self.layer, self.out = nn.Linear(8, 8), layer, nn.Linear(8, 2)

    def forward(self, x):
        x = self.fc(x).relu()
        if isinstance(self.layer, nn.RNNBase):
            x = self.layer(x)[0]
        elif isinstance(self.layer, nn.RNNCellBase):
            x = self.layer(x[:, 0])
            x = (x[0] if isinstance(x, tuple) else x).unsqueeze(1)
        elif isinstance(self.layer, nn.Bilinear):
            x = self.layer(x, x)
        else:
            x = self.layer(x)
        return self.out(x.mean(1))


class Module(LightningModule):
    def __init__(self, layer):
        super().__init__()
        self.net = Net(layer)

    def training_step(self, batch, batch_idx):
        return self.net(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


FLOAT = {
    "lstm": lambda: nn.LSTM(8, 8, batch_first=True),
    "gru": lambda: nn.GRU(8, 8, batch_first=True),
    "rnn_tanh": lambda: nn.RNN(8, 8, batch_first=True),
    "lstm_cell": lambda: nn.LSTMCell(8, 8),
    "gru_cell": lambda: nn.GRUCell(8, 8),
    "rnn_relu_cell": lambda: nn.RNNCell(8, 8, nonlinearity="relu"),
    "bilinear": lambda: nn.Bilinear(8, 8, 8),
    "conv_transpose1d": lambda: nn.ConvTranspose1d(5, 5, 3, padding=1),
}


def said_in_a_fit(callback, layer):
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        quiet(callback, max_epochs=1).fit(module := Module(layer), DataLoader(torch.randn(16, 5, 8), batch_size=4))
    return module, [str(each.message) for each in met if "no integer kernel computes" in str(each.message)]


@pytest.mark.parametrize("name", FLOAT)
def test_a_layer_without_a_kernel_is_named_once_unless_it_is_left_out(name):
    callback = QATFakeQuant()
    _, said = said_in_a_fit(callback, FLOAT[name]())
    assert len(said) == 1
    assert f"computes layer ({name}): weights" in said[0]
    assert "targets.exclude" in said[0]
    share = float(callback.describe().splitlines()[-1].removeprefix("MACs in integers: ").removesuffix(" %"))
    assert share < 80
    assert not said_in_a_fit(QATFakeQuant(targets=Targets(exclude=["net.layer"])), FLOAT[name]())[1]


def test_calibration_names_it_too_and_the_file_has_what_was_said(tmp_path):
    torch.manual_seed(0)
    batches = [torch.randn(4, 5, 8) for _ in range(3)]
    with pytest.warns(UserWarning, match=r"no integer kernel computes layer \(lstm\)"):
        quantized = calibrate(Net(FLOAT["lstm"]()), batches)
    with pytest.warns(UserWarning, match="in floating point are layer:float lstm"):
        written = quantized.export(tmp_path / "net.onnx")
    # Of a sample: 5 steps of 64 in fc, of 4 gates of 2 * 64 in the LSTM, and 16 in out.
    assert written.integer_share == pytest.approx((5 * 64 + 16) / (5 * (64 + 512) + 16), abs=1e-3)


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Linear(8, 8), nn.Conv1d(5, 5, 3, padding=1), nn.PReLU()])
def test_nothing_is_said_of_layers_with_one(layer):
    assert not said_in_a_fit(QATFakeQuant(), layer)[1]


def test_a_network_of_which_nothing_can_be_integers_is_told_what_it_has(tmp_path):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x):
            return self.layer(x)[0]

    batch = torch.randn(4, 5, 8)
    with pytest.raises(TargetError, match=r"of its products, layer \(lstm\): no integer kernel .* \(export_onnx\)$"):
        calibrate(Alone(), [batch] * 3)
    assert export_onnx(Alone(), (batch,), tmp_path / "net.onnx").is_file()
