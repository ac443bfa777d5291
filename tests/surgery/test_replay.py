"""In the second run of the same code a network gives what it gave in the first, and nothing of it runs."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_optim.errors import TapError
from lightning_optim.surgery.replay import NetworkReplay

CPU = torch.device("cpu")


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.norm, self.runs = nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3), 0

    def forward(self, x):
        self.runs += 1
        return self.norm(self.drop(self.layer(x)))


def run(network, code, *, is_root=False):
    replay = NetworkReplay(network, is_root=is_root, device=CPU)
    with replay.first(compares=True):
        first = code()
    after = torch.get_rng_state()
    with replay.second():
        second = code()
    assert torch.equal(after, torch.get_rng_state())
    return first, second, replay


@pytest.mark.parametrize("compiled", [False, True])
def test_a_network_and_its_hooks_run_once_and_random_numbers_are_drawn_alike(compiled):
    network, fired = Counted(), []
    network.register_forward_hook(lambda *_: fired.append(1))
    called = torch.compile(network, backend="eager") if compiled else network
    x = torch.randn(4, 3)

    def code():  # draws before the network, in it, between its calls and after it
        drawn = torch.rand(4, 1)
        hidden = called(x + drawn)
        return torch.cat([drawn, torch.rand(4, 1), called(hidden), torch.rand(4, 1)], 1)

    first, second, replay = run(called, code)
    assert torch.equal(first, second)
    assert (network.runs, len(fired), len(replay.outputs), replay.inputs_differ) == (2, 2, 2, False)
    assert int(network.norm.num_batches_tracked) == 2
    called(x)
    assert network.runs == 3


def test_a_root_that_is_called_by_its_forward_is_recorded_too():
    network, x = Counted(), torch.randn(4, 3)
    first, second, _ = run(network, lambda: network.forward(x), is_root=True)
    assert first is second
    assert network.runs == 1
    assert "forward" not in vars(network)


def test_a_network_in_a_checkpoint_has_its_gradient_once():
    gradients, x = [], torch.randn(4, 3)
    for twice in (False, True):
        torch.manual_seed(0)
        network = Counted()

        def code(network=network):
            return checkpoint(network, x, use_reentrant=False).square().sum()

        loss = sum(run(network, code)[:2]) if twice else 2.0 * code()
        loss.backward()
        gradients.append(network.layer.weight.grad)
    assert torch.equal(*gradients)


def test_other_inputs_in_the_second_run_are_noted():
    network, inputs = nn.Identity(), iter([torch.zeros(2), torch.ones(2)])
    assert run(network, lambda: network(next(inputs)))[2].inputs_differ


def test_code_that_does_not_call_the_network_or_calls_it_more_often_is_refused():
    network, runs = nn.Identity(), iter([1, 2])
    with pytest.raises(TapError, match="did not call the network"):
        run(network, lambda: torch.zeros(1))[2].check_called()
    with pytest.raises(TapError, match="called the network 1 times with the first labels, and more often"):
        run(network, lambda: [network(torch.zeros(1)) for _ in range(next(runs))])
    assert not network._forward_hooks
    assert "_compiled_call_impl" not in vars(network)


def test_a_reentrant_checkpoint_around_the_network_is_refused():
    network, x = Counted(), torch.randn(4, 3, requires_grad=True)
    with pytest.raises(TapError, match="use_reentrant=False"):
        run(network, lambda: checkpoint(network, x, use_reentrant=True))
