import pytest
import torch
from torch import nn

from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.missing_ranges import MissingRanges, notice_of
from lightning_optim.quantization.simulation.ranges import Ranges
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.watch import Watch


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.uses_two = nn.Linear(4, 4), nn.Linear(4, 4), False

    def forward(self, x):
        return self.two(self.one(x)) if self.uses_two else self.one(x)


def learned(steps=3):
    torch.manual_seed(0)
    net, simulator = Branching(), Simulator(Symmetric(), Affine(), MinMax())
    train(net, simulator, steps)
    return net, simulator


def train(net, simulator, steps, watch=Watch.ALL, x=None):
    for _ in range(steps):
        with simulator.observing(watch):
            simulator.run(net, net.forward, (torch.randn(8, 4) if x is None else x,), {})
        simulator.finish_batch()


def test_evaluation_names_once_what_has_no_range_and_gives_it_none():
    net, simulator = learned()
    net.eval().uses_two = True
    x = torch.randn(8, 4)
    with pytest.warns(UserWarning, match=r"the range of 'two:linear'.*calibrate\(\) complete what is missing"):
        out = simulator.run(net, net.forward, (x,), {})
    rounded = torch.allclose(out, net.two(simulated(net, simulator, x)), atol=1e-6)
    assert rounded  # the second layer computes in floating point, on what the first has rounded
    simulator.run(net, net.forward, (x,), {})  # says nothing more
    assert simulator.noticed == ["two:linear"]
    assert "two:linear" not in simulator.ranges.keys


def simulated(net, simulator, x):
    net.uses_two = False
    try:
        return simulator.run(net, net.forward, (x,), {})
    finally:
        net.uses_two = True


def test_what_training_meets_later_takes_three_batches_of_its_own_be_ranges_frozen_or_not():
    for watch in (Watch.ALL, Watch.NEW):
        net, simulator = learned()
        net.uses_two = True
        before = simulator.ranges.range_of("one:linear")
        for has_range in (False, True):
            train(net, simulator, 1, watch, 9.0 * torch.randn(8, 4))
            assert simulator.ranges.has("two:linear") is has_range
        assert (simulator.ranges.range_of("one:linear") == before) is (watch is Watch.NEW)


def test_a_missing_range_is_explained_by_its_cause():
    net, simulator = learned(steps=3)
    assert "no training batch ran it" in simulator.why_no_range("two:linear")
    net.eval().uses_two = True
    with pytest.warns(UserWarning, match="two:linear"):
        simulator.run(net, net.forward, (torch.randn(8, 4),), {})
    assert "evaluation alone ran it" in simulator.why_no_range("two:linear")
    train(net.train(), simulator, 1)
    assert "a single batch ran it" in simulator.why_no_range("two:linear")
    train(net, simulator, 1, x=torch.full((8, 4), torch.nan))
    assert "NaN or infinities" in simulator.why_no_range("two:linear")


def test_only_missing_ranges_are_observed():
    ranges = Ranges(Affine(), MinMax())
    ranges.observe("known", torch.tensor([0.0, 1.0]))
    ranges.register(ranges.new_keys)
    ranges.merge(ranges.message())
    missing = MissingRanges(ranges)
    for key in ("known", "new"):
        missing.observe(key, torch.tensor([-5.0, 5.0]))
    assert ranges.new_keys == ("new",)
    ranges.register(ranges.new_keys)
    ranges.merge(ranges.message())
    assert [ranges.range_of(key) for key in ranges.keys] == [(0.0, 1.0), (-5.0, 5.0)]


def test_a_notice_names_three():
    assert "'a', 'b', 'c' and 2 others" in notice_of(["a", "b", "c", "d", "e"])
