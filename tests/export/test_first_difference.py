import pytest
import torch
from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export import calibrate
from lightning_optim.export.first_difference import first_difference
from lightning_optim.export.onnx_file import write


class Pooled(nn.Module):
    """Layers before and behind a pooling with a divisor of its own; tokens before and behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.pool, self.second = nn.Conv2d(3, 8, 3), nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.second(self.pool(self.first(x).relu())).flatten(2).transpose(1, 2))


@pytest.fixture
def quantized():
    torch.manual_seed(0)
    return calibrate(Pooled().eval(), [torch.randn(16, 3, 8, 8)])


def test_nothing_differs_in_a_file_that_computes_as_simulated(quantized):
    example = ((torch.randn(4, 3, 8, 8),), {})
    assert first_difference(quantized.simulator, quantized.network, example, 1e-4) is None


def test_a_refusal_names_the_operator_from_which_on_the_file_differs(quantized, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "spell_out_pools", lambda program: None)  # as the exporter would have it
    example = ((torch.randn(4, 3, 8, 8),), {})
    key, error = first_difference(quantized.simulator, quantized.network, example, 0.05)
    assert key == "pool:float avg_pool2d"
    assert error == pytest.approx(0.25, abs=0.02)
    with pytest.raises(ExportError, match=r"It differs from pool:float avg_pool2d on, by a relative error of 0\.2"):
        quantized.export(tmp_path / "model.onnx", *example)
