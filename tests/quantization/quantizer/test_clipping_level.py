"""Learned clipping levels, against the paper's formula written out value by value."""

import math

import pytest
import torch
from callbacks.test_qat_fake_quant import Stateless, data, made, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_optim import QATFakeQuant
from lightning_optim.export import verify
from lightning_optim.quantization import ClippingLevel, Operand
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.quantizer.learner import Start
from lightning_optim.quantization.simulation.learned_values import LearnedValues
from support import same


def choi(value, alpha, bits):
    """Value (eq. 1 and 2), and whether it, or alpha, gets the gradient (eq. 3)."""
    clipped = 0.5 * (abs(value) - abs(value - alpha) + alpha)
    count = 2**bits - 1
    return round(clipped * count / alpha) * alpha / count, 0.0 <= value < alpha, value >= alpha


def quantized(quantizer, x, alpha, zero=0.0):
    """What a learned level makes of values, and the level, which gets the gradient."""
    level = torch.tensor(alpha, requires_grad=True)
    return quantizer.fake(x, *quantizer.learned_qparams({"alpha": level, "zero_point": torch.tensor(zero)})), level


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_and_gradients_are_the_papers(bits):
    generator = torch.Generator().manual_seed(bits)
    x, pull = (torch.randn(6, 7, generator=generator) for _ in range(2))
    leaf, alpha = x.clone().requires_grad_(), 1.1
    out, level = quantized(ClippingLevel(bits=bits), leaf, alpha)
    (out * pull).sum().backward()
    rows, pulled = [choi(value, level.item(), bits) for value in x.flatten().tolist()], pull.flatten().tolist()
    assert out.flatten().tolist() == pytest.approx([row[0] for row in rows], abs=1e-5)
    assert leaf.grad.flatten().tolist() == [each * row[1] for each, row in zip(pulled, rows, strict=True)]
    expected = sum(each * row[2] for each, row in zip(pulled, rows, strict=True))
    assert level.grad.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("zero", [0.0, 5.0])
def test_the_gradient_of_the_level_is_that_of_the_clipping_without_rounding(zero):
    x, alpha, bits = torch.randn(500, generator=torch.Generator().manual_seed(0)), 1.3, 4

    def clipped(level):
        step = level / (2**bits - 1)
        return x.double().clamp(-zero * step, (2**bits - 1 - zero) * step).sum().item()

    out, level = quantized(ClippingLevel(bits=bits), x, alpha, zero)
    out.sum().backward()
    assert level.grad.item() == pytest.approx((clipped(alpha + 1e-6) - clipped(alpha - 1e-6)) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("decay", [0.02, 0.05, 0.4])
def test_the_level_ends_where_what_is_clipped_and_the_decay_balance(decay):
    # Loss 0.5 * mean (clip(x) - x) ** 2 + decay / 2 * alpha ** 2 over [0, 1]: (1 - alpha) ** 2 / 2 = decay * alpha.
    x, quantizer, learned = torch.linspace(0, 1, 2001), ClippingLevel(decay=decay), LearnedValues()
    learned.find("x", quantizer.start(torch.tensor(0.8 / 255), torch.tensor(0.0)))
    learned.start()
    for step in range(400):
        learned.refresh()
        values = learned.values("x", x.device)
        clipped = quantizer.fake(x, *quantizer.learned_qparams(values))
        (0.5 * (clipped - x).square().mean() * 8.0).backward()
        learned.update(lambda gradient: gradient, learning_rate=0.1 / (1 + step / 10), loss_scale=8.0)
    expected = 1 + decay - math.sqrt(decay * (2 + decay))
    assert learned.values("x", x.device)["alpha"].item() == pytest.approx(expected, abs=0.01)


def test_decay_is_of_the_values_that_have_one():
    learned = LearnedValues()
    learned.find("a", {"alpha": Start(value=torch.tensor(2.0), decay=0.1), "beta": Start(value=torch.tensor(2.0))})
    learned.start()
    learned.update(lambda gradient: gradient, learning_rate=0.1)
    values = {name: value.item() for name, value in learned.values("a", torch.device("cpu")).items()}
    assert values["alpha"] < 1.9
    assert values["beta"] == pytest.approx(2.0)


def levels_of(callback):
    state = callback.state_dict()["learned"]
    return state["trained"][: len(state["sizes"]["positive"])].exp()


def test_a_fit_trains_the_levels_and_a_decay_lowers_them(tmp_path):
    ends = []
    for decay in (0.0, 10.0):
        callback = QATFakeQuant(activation_quantizer=ClippingLevel(decay=decay), learning_rate=0.05)
        trainer(tmp_path, callback).fit(made(), data())
        ends.append(levels_of(callback))
    assert (ends[1] < ends[0]).all()


@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_resumed_run_ends_bit_equal(tmp_path, step):
    make = lambda: QATFakeQuant(activation_quantizer=ClippingLevel(bits=4, decay=0.1))  # noqa: E731  # brevity
    whole, callback = made(Stateless), make()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callback, saver, enable_checkpointing=True).fit(whole, data())
    resumed, other = made(Stateless), make()
    trainer(tmp_path, other).fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(other.state_dict(), callback.state_dict())


def test_an_exported_file_computes_what_was_trained(tmp_path):
    module, callback = made(), QATFakeQuant(activation_quantizer=ClippingLevel(decay=1.0))
    trainer(tmp_path, callback).fit(module, data())
    x = torch.randn(8, 1, 4, 4)
    callback.export(tmp_path / "net.onnx", batches=[x])
    assert verify(tmp_path / "net.onnx", [x]).exact_fraction == 1.0


@pytest.mark.parametrize("decay", [-0.1, math.nan, math.inf])
def test_what_it_cannot_do_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be at least 0 and finite"):
        ClippingLevel(decay=decay)
    with pytest.raises(ValueError, match="quantizes activations"):
        check_operand(ClippingLevel(), Operand.WEIGHT)
