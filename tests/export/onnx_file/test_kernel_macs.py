import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.cost import count_macs
from lightning_optim.export import export_onnx
from lightning_optim.export.onnx_file.kernel_macs import measure_macs


class Products(nn.Module):
    """Batched products of activations, one of them transposed and scaled."""

    def forward(self, x):
        return ((x @ x.transpose(1, 2)) * 0.5) @ x


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(6, 5, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


class Attention(nn.Module):
    def forward(self, x):
        x = x.unflatten(2, (2, 3)).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x)


NETWORKS = {
    "convolution": (nn.Conv2d(4, 8, 3, stride=2, groups=2), (2, 4, 9, 9)),
    "channels narrower than a block": (nn.Conv2d(1, 3, 3, padding=1), (2, 1, 8, 8)),
    "line": (nn.Conv1d(4, 8, 3), (2, 4, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "linear": (nn.Linear(6, 3), (4, 6)),
    "linear over tokens": (nn.Linear(6, 3), (4, 7, 6)),
    "products": (Products(), (2, 7, 6)),
    "attention": (Attention(), (2, 7, 6)),
    "lstm": (Recurrent(nn.LSTM), (2, 7, 6)),
    "gru": (Recurrent(nn.GRU), (2, 7, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_multiply_as_often_as_the_network(tmp_path, name):
    torch.manual_seed(0)
    network, shape = NETWORKS[name]
    x = torch.randn(shape)
    found = measure_macs(export_onnx(network, (x,), tmp_path / "model.onnx"), [x])
    assert (found.integer, found.floating) == (0, count_macs(network, (x,)))
    assert found.integer_share == 0.0


def test_a_product_with_a_vector_sums_over_the_vector(tmp_path):
    class ByVector(nn.Module):
        def forward(self, x, vector):
            return x @ vector

    inputs = torch.randn(2, 7, 6), torch.randn(6)
    path = export_onnx(ByVector(), inputs, tmp_path / "model.onnx")
    assert measure_macs(path, inputs).floating == 2 * 7 * 6


def test_a_model_that_multiplies_nothing_has_nothing_in_floating_point(tmp_path):
    x = torch.randn(2, 3)
    found = measure_macs(export_onnx(nn.ReLU(), (x,), tmp_path / "model.onnx"), [x])
    assert (found.integer, found.floating, found.integer_share) == (0, 0, 1.0)
