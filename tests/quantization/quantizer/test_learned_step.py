"""Learned step sizes, against the paper's formulas written out value by value."""

import copy
import math

import pytest
import torch
from callbacks.test_qat_fake_quant import Manual, Module, Stateless, data, made, trainer

from lightning_optim import QATFakeQuant
from lightning_optim.export import verify
from lightning_optim.export.lowering.deployed import DeployedNetwork
from lightning_optim.export.lowering.dialect import AffineDialect
from lightning_optim.quantization import LearnedStep, LearnedStepAffine, Operand
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.quantizer.learner import Start
from lightning_optim.quantization.rounding.learned_step import round_to_steps
from lightning_optim.quantization.simulation.learned_values import LearnedValues
from support import same


def esser(value, step, qmin, qmax):
    """Value (eq. 1 and 2) and gradient of the step (eq. 3)."""
    ratio = value / step
    if ratio <= qmin:
        return qmin * step, qmin
    if ratio >= qmax:
        return qmax * step, qmax
    return round(ratio) * step, round(ratio) - ratio


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_and_gradients_are_the_papers(bits):
    weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(bits)).requires_grad_()
    quantizer = LearnedStep(bits=bits)
    qmax = quantizer.scheme.qmax
    step = quantizer.weight_scale(weight)
    for row, found in zip(weight.tolist(), step.tolist(), strict=True):
        flat = torch.tensor(row).abs().flatten().tolist()
        assert found == pytest.approx(2 * sum(flat) / len(flat) / math.sqrt(qmax), rel=1e-5)
    step = step.mul(0.7).view(3, 1, 1, 1).requires_grad_()
    out, pull = quantizer.fake(weight, step, None, is_within=True), torch.randn(3, 4, 2, 2)
    (out * pull).sum().backward()
    for channel in range(3):
        size = step[channel].item()
        total, expected = 0.0, []
        for value, pulled in zip(weight[channel].flatten().tolist(), pull[channel].flatten().tolist(), strict=True):
            result, slope = esser(value, size, -qmax, qmax)
            expected.append(result)
            total += pulled * slope
        assert out[channel].flatten().tolist() == pytest.approx(expected, abs=1e-5)
        assert step.grad[channel].item() == pytest.approx(total / math.sqrt(16 * qmax), rel=1e-3, abs=1e-4)
    assert torch.equal(weight.grad, pull * ((weight / step).abs() < qmax))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounds_that_are_known_numbers_give_what_tensors_give(dtype):
    # Values beyond, on and between the bounds; a zero point of one entry stays a tensor, a scalar becomes a number.
    x = torch.cat([torch.arange(-6.0, 9.0) / 2, torch.randn(500)]).to(dtype)
    pull, found = torch.randn(len(x)).to(dtype), []
    for zero_point in (torch.tensor(3.0), torch.tensor([3.0])):
        values, step = x.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
        out = round_to_steps(values, step, zero_point, 0, 7, gradient_scale=0.3)
        out.backward(pull)
        found.append((out, values.grad, step.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    inside = (x.float() / 0.5 > -3) & (x.float() / 0.5 < 4)
    assert torch.equal(found[0][1], pull * inside)
    assert found[0][0].dtype == found[0][1].dtype == dtype


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_papers_integers_reach_one_further_below_zero(bits):
    weight, pull = torch.randn(2, 30, generator=torch.Generator().manual_seed(bits)), torch.randn(2, 30)
    quantizer = LearnedStep(bits=bits, narrow_range=False, granularity="tensor")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = torch.tensor(1.2 / 2 ** (bits - 1), requires_grad=True)
    out = quantizer.fake(weight, step, None, is_within=True)
    (out * pull).sum().backward()
    rows = [esser(value, step.item(), low, high) for value in weight.flatten().tolist()]
    assert out.flatten().tolist() == pytest.approx([row[0] for row in rows], abs=1e-5)
    assert (out / step).round().min() == low
    total = sum(row[1] * pulled for row, pulled in zip(rows, pull.flatten().tolist(), strict=True))
    assert step.grad.item() == pytest.approx(total / math.sqrt(60 * high), rel=1e-3, abs=1e-4)


def test_the_gradient_of_an_activations_step_counts_the_values_of_a_sample():
    quantizer, x = LearnedStepAffine(bits=2), torch.tensor([[-1.0, 0.4], [0.9, 5.0]])
    step = torch.tensor(0.5, requires_grad=True)
    out = quantizer.fake(x, step, torch.tensor(1.0))
    out.sum().backward()
    assert out.tolist() == [[-0.5, 0.5], [1.0, 1.0]]
    slopes = [esser(value, 0.5, -1, 2)[1] for value in x.flatten().tolist()]
    assert step.grad.item() == pytest.approx(sum(slopes) / math.sqrt(2 * 3))


@pytest.mark.parametrize("zero_point", [None, 3.0])
def test_the_gradient_of_the_step_is_that_of_the_straight_through_surrogate(zero_point):
    # Around a step, rounding's residue is held: the surrogate is smooth but for the clipping.
    x, step = torch.randn(500, generator=torch.Generator().manual_seed(0)).double(), 0.31
    low, high = (0, 7) if zero_point is None else (-3, 4)
    residue = (x / step).round() - x / step

    def surrogate(size):
        steps = x / size
        return torch.where((steps > low) & (steps < high), x + residue * size, steps.clamp(low, high) * size).sum()

    learned = torch.tensor(step, requires_grad=True)
    zero = None if zero_point is None else torch.tensor(zero_point)
    round_to_steps(x.float(), learned, zero, 0, 7).sum().backward()
    difference = (surrogate(step + 1e-7) - surrogate(step - 1e-7)) / 2e-7
    assert learned.grad.item() == pytest.approx(difference.item(), rel=1e-3)


def quantizers(bits=4):
    return {"weight_quantizer": LearnedStep(bits=bits), "activation_quantizer": LearnedStepAffine()}


def steps_of(callback):
    return callback.state_dict()["learned"]["trained"]


@pytest.mark.parametrize("kind", [Module, Manual])
def test_a_fit_trains_the_steps(tmp_path, kind):
    first, last = QATFakeQuant(**quantizers()), QATFakeQuant(**quantizers())
    trainer(tmp_path, first, max_epochs=1, limit_train_batches=3).fit(made(kind), data())
    trainer(tmp_path, last).fit(made(kind), data())
    begun, ended = steps_of(first), steps_of(last)
    assert begun.shape == ended.shape
    assert begun.numel() >= 6 + 3  # channels of two layers, and activations
    assert (begun != ended).sum() > 6
    assert (begun - ended).abs().max() < 0.05  # five updates of at most one hundredth, but for Adam's first
    assert "4" in last.describe()


def test_steps_lower_the_error_they_are_trained_on():
    learned, weight = LearnedValues(), torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    quantizer = LearnedStep(bits=2)
    learned.find("w", {"step": Start(value=quantizer.weight_scale(weight) * 3)})
    learned.start()
    errors = []
    for _ in range(100):
        learned.refresh()
        step = learned.values("w", weight.device)["step"].view(-1, 1)
        error = (quantizer.fake(weight, step, None) - weight).square().sum()
        error.backward()
        errors.append(error.item())
        learned.update(lambda gradient: gradient, learning_rate=0.02)
    assert errors[-1] < 0.7 * errors[0]


def test_an_overflow_changes_nothing():
    learned = LearnedValues()
    learned.find("w", {"step": Start(value=torch.ones(2))})
    learned.start()
    before = copy.deepcopy(learned.state_dict())
    learned.refresh()
    (learned.values("w", torch.device("cpu"))["step"] * torch.inf).sum().backward()
    learned.update(lambda gradient: gradient, learning_rate=0.1)
    assert same(learned.state_dict(), before)


@pytest.mark.parametrize("step", [2, 3, 4, 6])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_bit_equal(tmp_path, step, accumulate):
    from lightning.pytorch.callbacks import ModelCheckpoint

    settings = {"accumulate_grad_batches": accumulate}
    whole, callback = made(Stateless), QATFakeQuant(**quantizers())
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callback, saver, enable_checkpointing=True, **settings).fit(whole, data())
    path = tmp_path / f"step={min(step, 8 // accumulate - 1)}.ckpt"
    resumed, other = made(Stateless), QATFakeQuant(**quantizers())
    trainer(tmp_path, other, **settings).fit(resumed, data(), ckpt_path=path, weights_only=True)
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(other.state_dict(), callback.state_dict())


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("freeze", [0.0, 1.0])
def test_an_exported_file_computes_what_was_trained(tmp_path, bits, freeze):
    module, callback = made(), QATFakeQuant(**quantizers(bits), freeze={"batch_norm": freeze})
    trainer(tmp_path, callback).fit(module, data())
    x = torch.randn(8, 1, 4, 4)
    callback.export(tmp_path / "net.onnx", batches=[x])
    assert verify(tmp_path / "net.onnx", [x]).exact_fraction == 1.0


@pytest.mark.parametrize("freeze", [0.0, 1.0])
def test_a_channel_whose_sign_the_batch_norm_turns_is_stored_within_its_bits(tmp_path, freeze):
    module = made()
    with torch.no_grad():
        module.net.norm.weight.mul_(torch.tensor([1.0, -1.0, 2.0, -0.5]))
        module.net.conv.weight[:, 0, 0, :2] = torch.tensor([3.0, -3.0])  # two steps each
    rule = LearnedStep(bits=2, narrow_range=False)
    callback = QATFakeQuant(weight_quantizer=rule, freeze={"batch_norm": freeze})
    trainer(tmp_path, callback).fit(module, data())
    x = torch.randn(8, 1, 4, 4)
    callback.export(tmp_path / "net.onnx", batches=[x])
    assert verify(tmp_path / "net.onnx", [x]).exact_fraction == 1.0
    stored = DeployedNetwork(module.net, callback._simulator, AffineDialect())
    stored(x)
    whole = [each for each in stored.backend.buffers() if each.dtype == torch.int8 and each.dim() > 1]
    assert min(each.min() for each in whole) == -2
    assert max(each.max() for each in whole) == 1


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="2 to 8"):
        LearnedStep(bits=1)
    with pytest.raises(ValueError, match="granularity"):
        LearnedStep(granularity="group")
    with pytest.raises(ValueError, match="quantizes weights"):
        check_operand(LearnedStep(), Operand.ACTIVATION)
    with pytest.raises(ValueError, match="learning_rate"):
        QATFakeQuant(weight_quantizer=LearnedStep(), learning_rate=0.0)
    with pytest.raises(ValueError, match="that learn their steps"):
        QATFakeQuant(learning_rate=0.1)
