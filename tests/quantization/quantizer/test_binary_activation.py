"""Binary activations, against the paper's formulas written out value by value."""

import pytest
import torch
from callbacks.test_qat_fake_quant import data, made, trainer
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_optim import QATFakeQuant, Targets
from lightning_optim.errors import ExportError
from lightning_optim.quantization import Affine, Binary, BinaryActivation, LayerQuantizers, Operand, Symmetric
from lightning_optim.quantization.quantizer.check import check_operand


def signs(values):
    return [1.0 if value >= 0 else -1.0 for value in values]


def binary(x):
    quantizer = BinaryActivation()
    return quantizer.fake(x, *quantizer.own_qparams(x))


@pytest.mark.parametrize("shape", [(3, 10), (2, 3, 4), (2, 3, 4, 4), (6,)])
def test_values_are_the_sign_times_the_mean_magnitude_of_the_sample(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[0] = 0.0
    out = binary(x)
    for sample, got in zip(x if x.dim() > 1 else [x], out if x.dim() > 1 else [out], strict=True):
        values = sample.flatten().tolist()
        scale = sum(map(abs, values)) / len(values)
        assert got.flatten().tolist() == pytest.approx([scale * sign for sign in signs(values)])


def test_a_product_of_two_binary_vectors_is_the_papers_approximation():
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(4, 32, generator=generator) for _ in range(2))
    rule = Binary()
    product = F.linear(binary(x), rule.fake(weight, rule.weight_scale(weight).view(-1, 1), None))
    for row, outs in zip(x.tolist(), product.tolist(), strict=True):
        for column, out in zip(weight.tolist(), outs, strict=True):
            matches = sum(one * other for one, other in zip(signs(row), signs(column), strict=True))
            alpha, beta = (sum(map(abs, values)) / 32 for values in (column, row))
            assert out == pytest.approx(alpha * beta * matches, rel=1e-4, abs=1e-6)


def test_its_scale_has_the_least_squared_error():
    x = torch.randn(1, 200, generator=torch.Generator().manual_seed(2))
    error = lambda factor: (x - factor * binary(x)).square().sum()  # noqa: E731  # brevity
    assert all(error(1.0) < error(factor) for factor in (0.99, 1.01))


def test_the_gradient_is_that_of_the_clipped_identity_times_the_scale():
    x = torch.tensor([[-1.5, -1.0, -0.3, 0.0, 0.8, 2.0]], requires_grad=True)
    pull = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    (binary(x) * pull).sum().backward()
    scale, inner = x.detach().abs().mean().item(), torch.tensor([[-1.5, -0.9, -0.3, 0.0, 0.8, 2.0]])
    clipped = lambda value: scale * value.double().clamp(-1.0, 1.0)  # noqa: E731  # what remains without the sign
    slopes = (clipped(inner + 1e-4) - clipped(inner - 1e-4)) / 2e-4
    assert torch.allclose(x.grad, (slopes * pull).float(), rtol=1e-3)


class Square(nn.Module):
    def forward(self, x):
        return x.square()


class SignedNet(nn.Module):
    """Binary convolutions between a first and a last layer of more bits, as the paper has them."""

    def __init__(self):
        super().__init__()
        self.first, self.norms = nn.Conv2d(1, 8, 3, padding=1), nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.power, self.pool, self.last = Square(), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.norms[0](self.first(x))
        for conv, norm in zip(self.body, self.norms[1:], strict=True):
            x = norm(conv(x))
        return self.last(self.pool(self.power(x)).flatten(1))


class Signed(LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.losses = SignedNet(), []

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self.net(x * (1 + y.view(-1, 1, 1, 1))), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def callback_of(**settings):
    ends = LayerQuantizers(
        targets=Targets(include=["net.first", "net.power", "net.pool", "net.last"]),
        weight_quantizer=Symmetric(),
        activation_quantizer=Affine(),
    )
    answer = LayerQuantizers(targets=Targets(include=["net.body.2"]), activation_quantizer=Affine())
    rules = {"weight_quantizer": Binary(), "activation_quantizer": BinaryActivation()}
    return QATFakeQuant(**rules, layers={"ends": ends, "answer": answer}, **settings)


def test_a_network_of_binary_weights_and_activations_learns(tmp_path):
    module, callback = made(Signed), callback_of(freeze={"batch_norm": 1.0})
    trainer(tmp_path, callback, max_epochs=12).fit(module, data(8))
    assert sum(module.losses[-8:]) < 0.7 * sum(module.losses[:8])
    lines = {line.split()[0]: line for line in callback.describe().splitlines()}
    assert "w1 a1" in lines["body.1:conv2d"]
    assert "w1 a8" in lines["body.2:conv2d"]
    assert "w8 a8" in lines["last:linear"]


def test_an_export_is_refused_by_name(tmp_path):
    module, callback = made(Signed), callback_of()
    trainer(tmp_path, callback).fit(module, data())
    for runtime in ("onnxruntime", "tensorrt"):
        with pytest.raises(ExportError, match=r"integer kernels need .* body\.0:conv2d has .*bits=1"):
            callback.export(tmp_path / "net.onnx", runtime=runtime)
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("rule", [BinaryActivation(), Symmetric(bits=1, granularity="tensor")])
def test_what_a_relu_puts_out_is_refused(tmp_path, rule):
    module, callback = made(), QATFakeQuant(activation_quantizer=rule)
    with pytest.raises(ValueError, match=r"keeps the sign alone, and :adaptive_avg_pool2d\[norm\] has but one"):
        trainer(tmp_path, callback).fit(module, data())
    assert "forward" not in vars(module.net)


def test_weights_are_refused():
    with pytest.raises(ValueError, match="BinaryActivation quantizes activations, not weights"):
        check_operand(BinaryActivation(), Operand.WEIGHT)
