"""Learned steps and offsets of activations, against the paper's formula written out value by value."""

import math

import pytest
import torch
from callbacks.test_qat_fake_quant import Stateless, data, made, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from lightning_optim import QATFakeQuant
from lightning_optim.export import export_quantized, verify
from lightning_optim.quantization import LearnedStepAffine, LearnedStepOffset, MinMax, Operand, Symmetric
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.rounding.learned_offset import round_to_offset_steps, zero_point_of
from lightning_optim.quantization.simulation.learned_values import LearnedValues
from lightning_optim.quantization.simulation.simulator import Simulator
from support import observe, same


def bhalgat(value, step, offset, qmax):
    """Value, and gradients of step and offset, as the paper has them."""
    ratio = (value - offset) / step
    if ratio <= 0:
        return offset, 0.0, 1.0
    if ratio >= qmax:
        return qmax * step + offset, qmax, 1.0
    return round(ratio) * step + offset, round(ratio) - ratio, 0.0


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_and_gradients_are_the_papers(bits):
    generator = torch.Generator().manual_seed(bits)
    x, pull = (torch.randn(5, 7, generator=generator) for _ in range(2))
    quantizer = LearnedStepOffset(bits=bits)
    qmax = quantizer.scheme.qmax
    step, zero = torch.tensor(1.7 / qmax, requires_grad=True), torch.tensor(float(qmax // 3), requires_grad=True)
    offset = -zero.item() * step.item()
    leaf = x.clone().requires_grad_()
    out = quantizer.fake(leaf, step, zero)
    (out * pull).sum().backward()
    rows = [bhalgat(value, step.item(), offset, qmax) for value in x.flatten().tolist()]
    assert out.flatten().tolist() == pytest.approx([row[0] for row in rows], abs=1e-5)
    pulled, share = pull.flatten().tolist(), 1.0 / math.sqrt(7 * qmax)
    of_step = sum(each * row[1] for each, row in zip(pulled, rows, strict=True)) * share
    of_offset = sum(each * row[2] for each, row in zip(pulled, rows, strict=True)) * share
    assert step.grad.item() == pytest.approx(of_step, rel=1e-3, abs=1e-4)
    assert zero.grad.item() == pytest.approx(-step.item() * of_offset, rel=1e-4, abs=1e-5)
    assert leaf.grad.flatten().tolist() == [each * (row[2] == 0) for each, row in zip(pulled, rows, strict=True)]


def test_the_gradients_are_those_of_the_straight_through_surrogate():
    x, first = torch.randn(500, generator=torch.Generator().manual_seed(0)).double(), (0.31, -0.93)  # three steps
    places = (x - first[1]) / first[0]
    residue = places.round() - places  # held, so that all but the clipping is smooth

    def surrogate(step, offset):
        place = (x - offset) / step
        return torch.where((place > 0) & (place < 7), x + residue * step, place.clamp(0, 7).round() * step + offset)

    step, offset = (torch.tensor(value, requires_grad=True) for value in first)
    round_to_offset_steps(x.float(), step, zero_point_of(offset, step, 0, 7), 0, 7).sum().backward()
    for place, leaf in enumerate((step, offset)):
        shift = [1e-7 * (place == index) for index in range(2)]
        above, below = (surrogate(first[0] + s * shift[0], first[1] + s * shift[1]).sum() for s in (1, -1))
        assert leaf.grad.item() == pytest.approx((above - below).item() / 2e-7, rel=1e-3)


@pytest.mark.parametrize(("offset", "zero", "slopes"), [(0.3, 0.0, (0.0, 2.0)), (-9.0, 7.0, (-2.0, 0.0))])
def test_a_zero_point_at_its_bound_moves_inwards_alone(offset, zero, slopes):
    for sign, slope in zip((1.0, -1.0), slopes, strict=True):
        leaf = torch.tensor(offset, requires_grad=True)
        found = zero_point_of(leaf, torch.tensor(0.5), 0, 7)
        (sign * found).backward()
        assert (found.item(), leaf.grad.item()) == (zero, slope)


@pytest.mark.parametrize("bits", [2, 3])
def test_training_finds_the_grid_of_least_error(bits):
    x = F.silu(torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 2)
    quantizer, learned = LearnedStepOffset(bits=bits), LearnedValues()
    qmax = quantizer.scheme.qmax
    error = lambda *qparams: (quantizer.fake(x, *qparams) - x).square().mean()  # noqa: E731  # brevity
    learned.find("x", quantizer.start(*quantizer.qparams(x.min(), x.max())))
    learned.start()
    for _ in range(150):
        learned.refresh()
        found = error(*quantizer.learned_qparams(learned.values("x", x.device)))
        found.backward()
        learned.update(lambda gradient: gradient, learning_rate=0.02)
    steps = [share * x.max() / qmax / 50 for share in range(10, 60)]
    best = min(error(step, torch.tensor(float(zero))).item() for step in steps for zero in range(qmax))
    assert found.item() < 1.02 * best


def quantizers(bits=8):
    return {"activation_quantizer": LearnedStepOffset(bits=bits)}


def values_of(callback):
    state = callback.state_dict()["learned"]
    names = [*state["sizes"]["positive"], *state["sizes"]["shifted"]]
    shifts = state["bases"] + state["units"] * state["trained"][len(state["bases"]) :]
    values = [*state["trained"][: len(state["bases"])].exp(), *shifts]
    return dict(zip(names, map(float, values), strict=True))


def test_a_fit_trains_steps_and_offsets_but_those_after_a_relu(tmp_path):
    first, last = QATFakeQuant(**quantizers()), QATFakeQuant(**quantizers())
    trainer(tmp_path, first, max_epochs=1, limit_train_batches=3).fit(made(), data())
    trainer(tmp_path, last).fit(made(), data())
    begun, ended = values_of(first), values_of(last)
    changed = {name for name in begun if begun[name] != ended[name]}
    assert begun.keys() == ended.keys()
    assert {"activation/conv:conv2d/step", "activation/conv:conv2d<0/offset"} <= changed
    assert begun["activation/conv:conv2d/offset"] == ended["activation/conv:conv2d/offset"] == 0.0
    step, low = (ended[f"activation/conv:conv2d<0/{name}"] for name in ("step", "offset"))
    covered = last._simulator.ranges.range_of("conv:conv2d<0")
    assert covered == pytest.approx((round(low / step) * step, round(low / step) * step + 255 * step), rel=1e-5)


@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_resumed_run_ends_bit_equal(tmp_path, step):
    whole, callback = made(Stateless), QATFakeQuant(**quantizers(4))
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callback, saver, enable_checkpointing=True).fit(whole, data())
    resumed, other = made(Stateless), QATFakeQuant(**quantizers(4))
    trainer(tmp_path, other).fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(other.state_dict(), callback.state_dict())


def test_an_exported_file_computes_what_was_trained(tmp_path):
    module, callback = made(), QATFakeQuant(**quantizers())
    trainer(tmp_path, callback).fit(module, data())
    x = torch.randn(8, 1, 4, 4)
    callback.export(tmp_path / "net.onnx", batches=[x])
    assert verify(tmp_path / "net.onnx", [x]).exact_fraction == 1.0


class Capped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu6(self.body(x)).mean((2, 3)))


@pytest.mark.parametrize("rule", [LearnedStepAffine(), LearnedStepOffset()])
def test_a_bound_above_which_a_learned_range_reaches_is_kept_in_the_file(tmp_path, rule):
    torch.manual_seed(0)
    net, x = Capped().eval(), 12 * torch.randn(16, 1, 4, 4)
    simulator = Simulator(Symmetric(), rule, MinMax())
    observe(simulator, net, x)
    simulator.run(net.train(), net.forward, (x,), {})
    simulator.learned.start()
    state = simulator.learned.state_dict()
    names = list(state["sizes"]["positive"])
    state["trained"][names.index("activation/body:conv2d/step")] += 0.5  # from 6 to 9.9
    simulator.learned.load_state_dict(state)
    written = export_quantized(simulator, net, tmp_path / "net.onnx", (x,))
    assert not written.kernels.floating.get("FusedConv")
    assert written.parity.exact_fraction > 0.9
    assert verify(written.path, [x]).exact_fraction == 1.0
    assert simulator.ranges.range_of("body:conv2d")[1] == pytest.approx(6 * math.exp(0.5), rel=1e-4)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="from 1 to 8"):
        LearnedStepOffset(bits=9)
    with pytest.raises(ValueError, match="quantizes activations"):
        check_operand(LearnedStepOffset(), Operand.WEIGHT)
