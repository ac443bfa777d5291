import pytest
import torch
from torch import nn

from lightning_optim.errors import TargetError
from lightning_optim.export import bit_latency
from lightning_optim.quantization import Symmetric
from lightning_optim.quantization.mixed_precision.sensitivity import bit_trials


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_each_layer_is_deployed_at_each_width_and_timed_in_turns():
    net, timed = network(), []

    def clock(call):
        timed.append(call)
        assert len(call()[0]) == 1  # one sample
        return float(len(timed))

    before = [value.clone() for value in net.state_dict().values()]
    trials = bit_trials(net, [torch.randn(32, 8)], [Symmetric(bits=bits) for bits in (4, 8)])
    found = bit_latency(net, trials, rounds=3, clock=clock)
    assert len(timed) == 3 * 5
    assert len(set(timed[:5])) == 5
    assert timed[:5] == timed[5:10]
    assert (found.bits, found.base) == ((4, 8), 6.0)  # the median of its turns
    assert found.layers == {"0": (7.0, 8.0), "2": (9.0, 10.0)}
    assert all(torch.equal(one, other) for one, other in zip(before, net.state_dict().values(), strict=True))


def test_what_cannot_be_measured_is_refused():
    net = network()
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        bit_latency(net, bit_trials(net, [torch.randn(4, 8)], [Symmetric(bits=4)]), rounds=0)
    with pytest.raises(TargetError, match="in integers"):
        bit_trials(nn.Sequential(nn.Softmax(-1)), [torch.randn(4, 8)], [Symmetric(bits=4)])
