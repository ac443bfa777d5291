"""Trained ternary weights, against the paper's formulas written out value by value."""

import pytest
import torch
from callbacks.test_qat_fake_quant import Stateless, data, made, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_optim import QATFakeQuant
from lightning_optim.export import verify
from lightning_optim.quantization import Affine, MinMax, Operand, TrainedTernary
from lightning_optim.quantization.functional import per_channel
from lightning_optim.quantization.quantizer.check import check_operand
from lightning_optim.quantization.simulation.simulator import Simulator
from support import observe, same


def drawn(seed=0, shape=(3, 4, 2, 2)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def zhu(values, positive, negative, threshold):
    """Levels (eq. 6 and 9), and what the gradient of each value is multiplied by (eq. 8), in units of the largest."""
    largest = max(map(abs, values))
    above = [value > threshold * largest for value in values]
    below = [value < -threshold * largest for value in values]
    levels = [positive * up - negative * down for up, down in zip(above, below, strict=True)]
    factors = [
        positive / largest if up else negative / largest if down else 1.0 for up, down in zip(above, below, strict=True)
    ]
    return levels, factors, above, below


def rows_of(granularity, *tensors):
    return zip(*(t.flatten(1) if granularity == "channel" else t.reshape(1, -1) for t in tensors), strict=True)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scales", [(1.28, 0.64), (0.3, 0.9)])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.4])
def test_values_and_gradients_are_the_papers(granularity, scales, threshold):
    weight, pull = drawn(), drawn(1)
    rule = TrainedTernary(threshold=threshold, granularity=granularity)
    shape = (3,) if granularity == "channel" else ()
    leaf = weight.clone().requires_grad_()
    positive, negative = (torch.full(shape, scale, requires_grad=True) for scale in scales)
    quantizer = rule.bind({"positive": positive, "negative": negative})
    spread = per_channel(quantizer.weight_scale(weight), weight)
    out = quantizer.fake(leaf, spread, None)
    (out * pull).sum().backward()
    assert torch.equal(out, quantizer.integers(weight, spread, torch.zeros_like(spread)) * spread)
    step = max(scales) / 64
    for index, (values, pulled, got, slopes) in enumerate(rows_of(granularity, weight, pull, out, leaf.grad)):
        rounded = [round(scale / step) * step for scale in scales]  # to the integers that a file can hold
        levels, _, above, below = zhu(values.tolist(), *rounded, threshold)
        assert got.tolist() == pytest.approx(levels, rel=1e-5)
        factors = zhu(values.tolist(), *scales, threshold)[1]
        assert slopes.tolist() == pytest.approx([p * f for p, f in zip(pulled.tolist(), factors, strict=True)])
        ups, downs = (sum(p for p, own in zip(pulled.tolist(), side, strict=True) if own) for side in (above, below))
        assert positive.grad.view(-1)[index].item() == pytest.approx(ups, abs=1e-5)
        assert negative.grad.view(-1)[index].item() == pytest.approx(-downs, abs=1e-5)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_scales_begin_at_the_least_squared_error_of_their_side(granularity):
    weight = drawn()
    rule = TrainedTernary(threshold=0.1, granularity=granularity)
    first = {name: start.value for name, start in rule.start(weight).items()}
    for index, (row,) in enumerate(rows_of(granularity, weight)):
        error = lambda p, n, row=row: sum(  # noqa: E731  # brevity
            (v - level) ** 2 for v, level in zip(row.tolist(), zhu(row.tolist(), p, n, 0.1)[0], strict=True)
        )
        best = [value.view(-1)[index].item() for value in first.values()]
        for change in ((1.02, 1.0), (0.98, 1.0), (1.0, 1.02), (1.0, 0.98)):
            assert error(*best) < error(best[0] * change[0], best[1] * change[1])


def test_a_side_without_weights_begins_with_those_of_the_other():
    first = TrainedTernary().start(torch.tensor([[1.0, 3.0], [0.0, 2.0]]))
    assert [start.value.item() for start in first.values()] == [2.0, 2.0]
    dead = TrainedTernary(granularity="channel")
    assert torch.equal(dead.integers(torch.zeros(2, 3), torch.ones(2, 1), torch.zeros(2, 1)), torch.zeros(2, 3))


def callback_of(**settings):
    return QATFakeQuant(weight_quantizer=TrainedTernary(**settings), learning_rate=0.05)


def scales_of(callback):
    state = callback.state_dict()["learned"]
    return dict(zip(state["sizes"]["positive"], state["trained"].exp().tolist(), strict=True))


def test_a_fit_trains_both_scales_of_each_layer(tmp_path):
    first, last = callback_of(), callback_of()
    trainer(tmp_path, first, max_epochs=1, limit_train_batches=3).fit(made(), data())
    trainer(tmp_path, last).fit(made(), data())
    begun, ended = scales_of(first), scales_of(last)
    assert len(begun) == 4
    assert all(begun[name] != ended[name] for name in ended)
    assert "w2" in last.describe()


@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_resumed_run_ends_bit_equal(tmp_path, step):
    whole, callback = made(Stateless), callback_of(granularity="channel")
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callback, saver, enable_checkpointing=True).fit(whole, data())
    resumed, other = made(Stateless), callback_of(granularity="channel")
    trainer(tmp_path, other).fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(other.state_dict(), callback.state_dict())


@pytest.mark.parametrize(("granularity", "freeze"), [("tensor", 1.0), ("channel", 0.0)])
def test_an_exported_file_computes_what_was_trained(tmp_path, granularity, freeze):
    module = made()
    with torch.no_grad():
        module.net.norm.weight.mul_(torch.tensor([1.0, -1.0, 2.0, -0.5]))
    callback = QATFakeQuant(weight_quantizer=TrainedTernary(granularity=granularity), freeze={"batch_norm": freeze})
    trainer(tmp_path, callback).fit(module, data())
    x = torch.randn(8, 1, 4, 4)
    callback.export(tmp_path / "net.onnx", batches=[x])
    assert verify(tmp_path / "net.onnx", [x]).exact_fraction == 1.0


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_batch_norm_that_turns_the_sign_is_folded_without_a_change(granularity):
    torch.manual_seed(0)
    layer, norm, x = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), torch.randn(8, 3, 6, 6)
    net = nn.Sequential(layer, norm)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.0, 2.0, -0.5]))
    simulator = Simulator(TrainedTernary(granularity=granularity), Affine(), MinMax())
    observe(simulator, net, x)
    simulator.learned.start()
    state = simulator.learned.state_dict()
    state["trained"] += torch.linspace(-1.0, 0.0, len(state["trained"]))  # both scales differ
    simulator.learned.load_state_dict(state)
    norm.momentum = 1.0  # running statistics become those of the batch
    for _ in range(2):
        unfolded = simulator.run(net.train(), net.forward, (x,), {})
    size = x.numel() / 3 * 16 / 36
    norm.running_var *= (size - 1) / size
    folded = simulator.run(net.eval(), net.forward, (x,), {})
    step = simulator.ranges.qparams("0:conv2d", x.device)[0]
    assert ((unfolded - folded).abs() > 1.01 * step).sum() == 0
    assert ((unfolded - folded).abs() > 0.5 * step).float().mean() < 0.05


def test_without_training_it_is_ternary_with_two_scales():
    weight, rule = drawn(), TrainedTernary()
    spread = rule.weight_scale(weight)
    first = {name: start.value for name, start in rule.start(weight).items()}
    assert torch.equal(rule.fake(weight, spread, None), rule.bind(first).fake(weight, spread, None))
    assert len(rule.fake(weight, spread, None).unique()) == 3


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\)"):
        TrainedTernary(threshold=1.0)
    with pytest.raises(ValueError, match="granularity"):
        TrainedTernary(granularity="group")
    with pytest.raises(ValueError, match="quantizes weights"):
        check_operand(TrainedTernary(), Operand.ACTIVATION)
