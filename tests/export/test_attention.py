"""Transformers of torch's own modules are integers in their file, but for attention itself."""

import pytest
import torch
from torch import nn

from lightning_optim.export import calibrate, verify

WIDTH, HEADS, TOKENS = 256, 4, 128


class Encoder(nn.Module):
    def __init__(self, width, **settings):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, batch_first=True, **settings)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.encoder(x).mean(1))


class Decoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.transformer, self.fc = nn.Transformer(width, HEADS, 1, 1, 4 * width, batch_first=True), nn.Linear(width, 5)

    def forward(self, x):
        unseen = nn.Transformer.generate_square_subsequent_mask(7)
        return self.fc(self.transformer(x, x[:, :7], tgt_mask=unseen, tgt_is_causal=True).mean(1))


class Weighted(nn.Module):
    """Attention that puts out its weights, under a padding mask."""

    def __init__(self, width):
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(width, HEADS, batch_first=True), nn.Linear(width, 5)

    def forward(self, x):
        padded = (torch.arange(x.shape[1]) >= 6).expand(x.shape[0], -1)
        out, weights = self.attention(x, x, x, key_padding_mask=padded)
        return self.fc(out.mean(1)), weights


class Projections(nn.Module):
    """Linear layers as transformers' models of the GPT family write them."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.1 * torch.randn(width, width)), nn.Parameter(torch.randn(width))
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return self.fc(flat.view(x.shape).mean(1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def exported(net, tmp_path, *shape, **settings):
    batches = [torch.randn(shape) for _ in range(2)]
    quantized = calibrate(net.eval(), batches)
    return quantized.export(tmp_path / "model.onnx", **settings), batches


@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"bias": False}, {"activation": "gelu"}])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_nine_tenths_of_an_encoder_are_integers(tmp_path, settings):
    written, batches = exported(Encoder(WIDTH, **settings), tmp_path, 2, TOKENS, WIDTH, fallbacks="refused")
    assert written.integer_share >= 0.92
    assert written.kernels.integer["QGemm"] == 9
    assert {key.partition(":")[2] for key in written.fallbacks} == {"scaled_dot_product_attention"}
    assert verify(written.path, batches[:1]).exact_fraction >= 0.9


@pytest.mark.filterwarnings("ignore:.* of the multiply-accumulates run in integers", "ignore:enable_nested_tensor")
@pytest.mark.parametrize(("kind", "num_linear"), [(Decoder, 12), (Weighted, 3), (Projections, 2)])
def test_each_projection_is_an_integer_kernel(tmp_path, kind, num_linear):
    written, _ = exported(kind(32), tmp_path, 8, 9, 32)
    assert written.kernels.integer["QGemm"] == num_linear
    assert written.parity.relative_error <= 0.01


def test_scores_under_a_mask_stay_in_floating_point(tmp_path):
    written, _ = exported(Weighted(32), tmp_path, 8, 9, 32)
    assert written.integer_share == 1.0  # both products of attention, too
    assert written.fallbacks["attention:add"] == "what a softmax alone reads may be masked"


class Capturing(nn.Module):
    """Adds a mask where it is captured, as models do that skip it where values tell that it masks nothing."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        scores = self.embed(x) * 0.5
        if torch.compiler.is_exporting():
            scores = scores + torch.zeros(1, 16)
        return self.fc(scores.softmax(-1))


def test_what_a_model_runs_in_a_capture_alone_stays_in_floating_point(tmp_path):
    written, _ = exported(Capturing(), tmp_path, 8, 8)
    assert written.kernels.floating["Add"] == 1
    assert written.integer_share == 1.0
