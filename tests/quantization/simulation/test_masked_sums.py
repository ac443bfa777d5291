"""What a mask adds is recognized by its values, whatever lies between it and a softmax."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.export import calibrate
from lightning_optim.quantization import Affine, MovingAverage, Symmetric
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.plan import MASKED
from lightning_optim.quantization.simulation.simulator import Simulator

SENTINELS = {"-1e4": -1e4, "-1e9": -1e9, "least": torch.finfo(torch.float32).min, "-inf": -math.inf}


class Attention(nn.Module):
    """Attention whose mask joins the scores in one of several ways."""

    def __init__(self, kind, sentinel):
        super().__init__()
        self.kind, self.sentinel = kind, sentinel
        self.embed, self.query, self.key, self.value = nn.Embedding(50, 16), *(nn.Linear(16, 16) for _ in range(3))
        self.head, self.bias = nn.Linear(16, 5), nn.Parameter(torch.randn(12, 12))

    def forward(self, tokens):
        x, hidden = self.embed(tokens), (tokens == 0)[:, None]
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        mask = torch.zeros(hidden.shape).masked_fill(hidden, self.sentinel)
        if self.kind == "position bias":
            scores = scores + (self.bias + mask)
        elif self.kind == "temperature":
            scores = (scores + self.bias + mask) / 1.5
        elif self.kind == "two masks":
            causal = torch.full((12, 12), self.sentinel).triu(1)
            scores = (scores + (causal + mask)).clamp(min=torch.finfo(torch.float32).min) / 2
        elif self.kind == "masked_fill":
            scores = scores.masked_fill(hidden, self.sentinel) + self.bias
            scores = scores * 0.5
        elif self.kind == "where":
            scores = (torch.where(hidden, self.sentinel, scores) + self.bias).mul(0.5)
        elif self.kind == "in place":
            scores += self.bias
            scores.masked_fill_(hidden, self.sentinel)
            scores += self.bias
            scores = scores.clone() * 0.5
        elif self.kind == "concatenated":
            sink = torch.full_like(scores[..., :1], self.sentinel)
            scores = torch.cat([scores + mask, sink], -1) / 1.5
            return self.head((scores.softmax(-1)[..., :-1] @ self.value(x)).mean(1))
        return self.head((scores.softmax(-1) @ self.value(x)).mean(1))


KINDS = ("position bias", "temperature", "two masks", "masked_fill", "where", "in place", "concatenated")


def batches():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 50, (64, 12), generator=generator)
    tokens[:, 9:] *= torch.rand(64, 3, generator=generator) > 0.5
    return [*tokens.split(32)]


def sums():
    """Each kind with one sentinel, in turn; the other pairs are slow."""
    for place, kind in enumerate(KINDS):
        for turn, sentinel in enumerate(SENTINELS):
            marks = [] if turn == place % len(SENTINELS) else pytest.mark.slow
            yield pytest.param(kind, sentinel, id=f"{kind}-{sentinel}", marks=marks)


@pytest.mark.parametrize(("kind", "sentinel"), list(sums()))
def test_a_sum_that_holds_sentinels_stays_in_float_and_is_named(kind, sentinel, tmp_path):
    torch.manual_seed(0)
    net = Attention(kind, SENTINELS[sentinel]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized = calibrate(net, batches())
    tokens = torch.cat(batches())
    with torch.no_grad():
        expected = net(tokens)
    assert (quantized.simulated()(tokens) - expected).norm() < 0.1 * expected.norm()
    assert MASKED in quantized.describe()
    written = quantized.export(tmp_path / "model.onnx", batches=batches())
    assert written.parity.relative_error < 0.01
    assert MASKED in written.fallbacks.values()


@pytest.mark.parametrize("sentinel", SENTINELS)
@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_mask_that_comes_later_is_told_at_its_batch(first, sentinel):
    torch.manual_seed(0)
    net = Attention("position bias", SENTINELS[sentinel])
    simulator = Simulator(Symmetric(), Affine(), MovingAverage())
    masked, plain = batches()[0], batches()[0].clamp(min=1)
    for step in range(6):
        with simulator.observing(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            simulator.run(net, net.forward, (masked if step >= first else plain,), {})
            simulator.finish_batch()
        assert bool(told) == (step == first)
        for each in told:
            assert "holds a mask's huge numbers" in str(each.message)
    assert simulator.plan.masked == {":add"}
    with torch.no_grad():
        expected = net(masked)
    assert (simulator.forward_of(net)(masked) - expected).norm() < 0.1 * expected.norm()


def test_padding_of_a_max_pooling_leaves_no_sentinel():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            padded = F.pad(self.first(x), (1, 1, 1, 1), value=-math.inf)
            return self.second(F.max_pool2d(padded, 3, 2))

    torch.manual_seed(0)
    net, x = Pooled().eval(), torch.randn(8, 3, 9, 9)
    quantized = calibrate(net, [x])
    with torch.no_grad():
        assert (quantized.simulated()(x) - net(x)).norm() < 0.05 * net(x).norm()
    assert MASKED not in quantized.describe()


def test_one_value_in_the_range_of_a_layer_is_told():
    net, x = nn.Linear(4, 2), torch.rand(32, 4)
    x[3, 1] = 3000.0
    with pytest.warns(UserWarning, match=r"one value takes nearly all of the range of :linear<0, \[.*, 3000\]"):
        calibrate(net, [x])


def test_a_mask_that_evaluation_alone_meets_is_told_and_calibration_completes_it():
    torch.manual_seed(0)
    net = Attention("position bias", -1e9).eval()
    masked, plain = batches()[0], batches()[0].clamp(min=1)
    simulator = Simulator(Symmetric(), Affine(), MovingAverage())
    run_calibration(simulator, net, [plain])
    ranges = {key: simulator.ranges.range_of(key) for key in simulator.ranges.keys if "linear" in key}
    with pytest.warns(
        UserWarning, match=r":masked_fill holds a mask's huge numbers, .*Let calibrate\(\) see such a batch"
    ):
        simulator.forward_of(net)(masked)
    with pytest.warns(UserWarning, match=":add holds a mask's huge numbers, beside which"):
        run_calibration(simulator, net, [masked])
    assert simulator.plan.masked == {":add"}
    assert ranges == {key: simulator.ranges.range_of(key) for key in ranges}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = net(masked)
        assert (simulator.forward_of(net)(masked) - expected).norm() < 0.1 * expected.norm()
