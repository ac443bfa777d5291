import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_optim.cost import count_macs
from lightning_optim.quantization.simulation.operator_macs import operator_macs


class Summed(TorchFunctionMode):
    """Sums up what every torch function of a pass multiplies."""

    macs = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.macs += operator_macs(getattr(func, "__name__", ""), args, kwargs or {}, out)
        return out


class Called(nn.Module):
    """A function of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


X, Y = torch.randn(2, 5, 6), torch.randn(2, 6, 4)
NETWORKS = {
    "conv1d": (nn.Conv1d(5, 4, 3, groups=1), (X,)),
    "conv3d": (nn.Conv3d(1, 4, 3, padding=1), (torch.randn(2, 1, 4, 4, 4),)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=4), (torch.randn(2, 4, 5, 5),)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (torch.randn(2, 4, 5, 5),)),
    "linear": (nn.Linear(6, 3), (X,)),
    "matmul": (Called(lambda x, y: x @ y), (X, Y)),
    "broadcast": (Called(torch.matmul), (X, Y[0])),
    "baddbmm": (Called(lambda x, y: torch.baddbmm(torch.zeros(5, 4), x, y)), (X, Y)),
    "addmm": (Called(lambda x, y: torch.addmm(torch.zeros(5, 4), x[0], y[0])), (X, Y)),
    "einsum": (Called(lambda x, y: torch.einsum("bij,bjk->bik", x, y)), (X, Y)),
    "einsum with an ellipsis": (Called(lambda x, y: torch.einsum("...ij, ...jk", x, y)), (X, Y)),
    "attention": (Called(lambda x, y: F.scaled_dot_product_attention(x, x, x)), (X, Y)),
    "lstm": (nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True), (X,)),
    "gru": (nn.GRU(6, 5), (X,)),
    "lstm cell": (nn.LSTMCell(6, 5), (X[0],)),
    "gru cell": (nn.GRUCell(6, 5), (X[0],)),
    "nothing": (nn.GELU(), (X,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_call_counts_as_often_as_it_multiplies(name):
    network, inputs = NETWORKS[name]
    with Summed() as summed:
        network(*inputs)
    assert summed.macs == count_macs(network, inputs)


def test_products_that_are_summed_over_the_batch_count_each():
    with Summed() as summed:
        torch.addbmm(torch.zeros(5, 4), X, Y)
    assert summed.macs == 2 * 5 * 6 * 4


def test_a_bilinear_layer_multiplies_each_pair_of_inputs_by_a_weight():
    with Summed() as summed:
        nn.Bilinear(6, 4, 3)(X, Y.transpose(1, 2)[:, :1].expand(2, 5, 6)[..., :4])
    assert summed.macs == 2 * 5 * 3 * 6 * 4
