"""Networks of any operators become files: what has an integer kernel runs in it, all else as it was simulated."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.errors import ExportError
from lightning_optim.export import ONNXRuntime, calibrate, verify
from lightning_optim.export.fallbacks import planned_share

pytestmark = pytest.mark.filterwarnings("ignore:.* of the multiply-accumulates run in integers")


class Between(nn.Module):
    """A layer in integers, a function of its output, and a head in integers."""

    def __init__(self, first, function, **parts):
        super().__init__()
        self.first, self.function, self.parts, self.head = first, function, nn.ModuleDict(parts), nn.LazyLinear(4)

    def forward(self, x):
        return self.head(self.function(self.parts, self.first(x)).flatten(1))


def image(function, **parts):
    return Between(nn.Conv2d(3, 8, 3, padding=1), function, **parts), (4, 3, 8, 8)


def tokens(function, **parts):
    return Between(nn.Linear(16, 16), function, **parts), (4, 6, 16)


def causal(m, x):
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def rotated(m, x):
    turn = torch.polar(torch.ones(8), torch.arange(8.0))
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (8, 2)).contiguous()) * turn).flatten(-2)


def masked(m, x):
    unseen = torch.ones(6, 6).triu(1).bool()
    return (x @ x.transpose(1, 2)).masked_fill(unseen, -1e9).softmax(-1) @ x


NETWORKS = {
    "interpolation": lambda: image(lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "bicubic": lambda: image(lambda m, x: F.interpolate(x, size=(11, 11), mode="bicubic")),
    "upsample": lambda: image(lambda m, x: m["up"](x), up=nn.Upsample(scale_factor=2)),
    "pixel shuffle": lambda: image(lambda m, x: F.pixel_shuffle(x, 2)),
    "adaptive average": lambda: image(lambda m, x: F.adaptive_avg_pool2d(x, (3, 5))),
    "adaptive maximum": lambda: image(lambda m, x: F.adaptive_max_pool2d(x, 2)),
    "transposed in groups": lambda: image(lambda m, x: m["up"](x), up=nn.ConvTranspose2d(8, 4, 3, 2, 1, groups=2)),
    "volume": lambda: image(lambda m, x: F.avg_pool3d(m["c"](x.unsqueeze(2)), (1, 2, 2)), c=nn.Conv3d(8, 4, (1, 3, 3))),
    "circular padding": lambda: image(lambda m, x: m["c"](x), c=nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular")),
    "two-sided clip": lambda: image(lambda m, x: F.hardtanh(x, -0.2, 0.2)),
    "group norm": lambda: image(lambda m, x: m["n"](x), n=nn.GroupNorm(2, 8)),
    "activations": lambda: image(lambda m, x: F.hardswish(x) * F.mish(x) - F.elu(x) / (1 + F.softplus(x))),
    "glu": lambda: tokens(lambda m, x: F.glu(x, -1)),
    "bilinear": lambda: tokens(lambda m, x: m["b"](x, x), b=nn.Bilinear(16, 16, 4)),
    "einsum": lambda: tokens(lambda m, x: torch.einsum("bti,bsi->bts", x, x)),
    "einsum with a weight": lambda: tokens(
        lambda m, x: torch.einsum("io,bti->bto", m["w"].weight, x), w=nn.Linear(8, 16)
    ),
    "einsum of three": lambda: tokens(lambda m, x: torch.einsum("bti,bsi,bsj->btj", x, x, x)),
    "tensordot": lambda: tokens(lambda m, x: torch.tensordot(x, m["w"].weight, dims=([2], [0])), w=nn.Linear(8, 16)),
    "cumulative sum": lambda: tokens(lambda m, x: x.cumsum(1)),
    "where": lambda: tokens(lambda m, x: torch.where(x > 0, x, 0.1 * x)),
    "masked": lambda: tokens(masked),
    "attention of one head": lambda: tokens(causal),
    "lstm": lambda: tokens(lambda m, x: m["r"](x)[0], r=nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)),
    "gru": lambda: tokens(lambda m, x: m["r"](x)[0], r=nn.GRU(16, 8, batch_first=True)),
    "cells": lambda: tokens(lambda m, x: m["r"](x[:, 1], m["r"](x[:, 0])), r=nn.GRUCell(16, 8)),
    "rms norm": lambda: tokens(lambda m, x: m["n"](x), n=nn.RMSNorm(16)),
    "batch norm over tokens": lambda: tokens(lambda m, x: m["n"](x), n=nn.BatchNorm1d(6)),
    "fourier": lambda: tokens(lambda m, x: torch.fft.rfft(x, dim=1).abs()),
    "complex": lambda: tokens(rotated),
    "largest": lambda: tokens(lambda m, x: x.topk(3, dim=1).values),
    "scattered": lambda: tokens(lambda m, x: torch.zeros(x.shape).scatter(1, x.argsort(1), x)),
}
IN_FLOAT = {  # names of the operators whose products have no integer kernel
    "transposed in groups": {"conv_transpose2d"},
    "bilinear": {"bilinear"},
    "einsum of three": {"einsum"},
    "tensordot": {"tensordot"},
    "attention of one head": {"scaled_dot_product_attention"},
    "lstm": {"lstm"},
    "gru": {"gru"},
    "cells": {"gru_cell"},
}


older = torch.__version__ < "2.13"
MARKS = {
    "adaptive maximum": pytest.mark.skipif(
        older, reason=f"torch {torch.__version__} does not write adaptive_max_pool2d to ONNX, torch 2.13 does"
    )
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in NETWORKS])
def test_a_network_of_any_operators_runs_as_simulated(tmp_path, name):
    torch.manual_seed(0)
    net, shape = NETWORKS[name]()
    batches = [torch.randn(shape) for _ in range(2)]
    net(batches[0])
    quantized = calibrate(net.eval(), batches)
    written = quantized.export(tmp_path / "model.onnx", batches=batches)
    assert written.parity.relative_error <= 0.03
    assert (written.integer_share < 1.0) == (name in IN_FLOAT)
    assert planned_share(quantized.simulator, ONNXRuntime()) == pytest.approx(written.integer_share, abs=0.02)
    named = {key.rpartition(":")[2].removeprefix("float ").partition("[")[0] for key in written.fallbacks}
    assert named >= IN_FLOAT.get(name, set())
    assert sum(written.kernels.integer.values()) >= 2


@pytest.mark.skipif(not older, reason="torch 2.13 writes it")
def test_an_operator_that_an_older_torch_does_not_write_is_refused_with_the_torch_that_does(tmp_path):
    net, shape = NETWORKS["adaptive maximum"]()
    net(torch.randn(shape))
    with pytest.raises(ExportError, match=rf"adaptive_max_pool2d.* torch 2.13 .*{torch.__version__[:3]}.*update torch"):
        calibrate(net.eval(), [torch.randn(shape)]).export(tmp_path / "model.onnx")


def test_integers_of_a_clip_between_values_are_emulated(tmp_path):
    torch.manual_seed(0)
    net, shape = image(lambda m, x: F.hardtanh(x, -0.2, 0.2))
    batch = torch.randn(shape)
    net(batch)
    written = calibrate(net.eval(), [batch]).export(tmp_path / "model.onnx")
    assert verify(written.path, [batch]).exact_fraction == 1.0


@pytest.mark.parametrize(
    ("first", "pool", "shape"),
    [
        (nn.Conv1d(3, 8, 3), nn.AdaptiveAvgPool1d(1), (8, 3, 20)),
        (nn.Conv3d(3, 8, 3), nn.AdaptiveAvgPool3d((1, 1, 1)), (4, 3, 5, 6, 7)),
    ],
)
def test_an_average_over_a_line_or_a_volume_is_an_integer_kernel(tmp_path, first, pool, shape):
    torch.manual_seed(0)
    net, batch = Between(nn.Sequential(first, nn.ReLU()), lambda m, x: m["pool"](x), pool=pool), torch.randn(shape)
    net(batch)
    written = calibrate(net.eval(), [batch]).export(tmp_path / "model.onnx", fallbacks="refused")
    assert written.kernels.integer["QLinearGlobalAveragePool"] == 1
    assert not written.kernels.floating
    assert verify(written.path, [batch]).exact_fraction == 1.0
