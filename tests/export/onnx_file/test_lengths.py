import builtins

import onnxruntime
import pytest
import torch
from torch import nn

from lightning_optim.export import calibrate, export_onnx
from lightning_optim.export.onnx_file.lengths import open_lengths


class Flattening(nn.Module):
    """Asks for the length of its input, as much code does that flattens."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.second(x.view(len(x), -1)) / len(self.first.bias)


def made():
    torch.manual_seed(0)
    return Flattening(), torch.randn(8, 4)


def run(path, x):
    session = onnxruntime.InferenceSession(path)
    return torch.as_tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_a_network_that_asks_for_a_length_is_exported_with_an_open_batch(tmp_path):
    net, x = made()
    export_onnx(net, (x,), tmp_path / "net.onnx")
    for size in (1, 5, 8):
        assert torch.allclose(run(tmp_path / "net.onnx", x[:size]), net(x[:size]), atol=1e-5)


def test_its_quantized_form_is_exported_alike(tmp_path):
    net, x = made()
    quantized = calibrate(net, [x, x])
    quantized.export(tmp_path / "net.onnx")
    for size in (1, 5, 8):
        assert torch.allclose(run(tmp_path / "net.onnx", x[:size]), quantized.simulated()(x[:size]), atol=1e-2)


def test_python_has_its_own_function_back_whatever_happens():
    plain = builtins.len
    with pytest.raises(TypeError), open_lengths():
        len(torch.tensor(1.0))
    assert builtins.len is plain
