"""Gradients and ranges of a checkpointed network are those of the same network without checkpoints, bit for bit."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

from lightning_optim.quantization import (
    Affine,
    LearnedStep,
    LearnedStepAffine,
    MinMax,
    MovingAverage,
    Percentile,
    Symmetric,
)
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.watch import Watch
from support import same


class Net(nn.Module):
    """Runs a function with its layers and a way to checkpoint."""

    def __init__(self, function):
        super().__init__()
        self.function, self.run = function, plain
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.0)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.function(self, x).mean((2, 3)))


def plain(function, *args, **kwargs):
    return function(*args, **kwargs)


def residual(net, x):
    x = F.relu(net.stem(x))
    return x + net.run(net.body, x)


def pending(net, x):
    """What goes in is rounded behind the ReLU inside of the part, and read outside as well."""
    x = net.stem(x)
    return net.run(lambda y: net.body(F.relu(y)), x)


def nested(net, x):
    def outer(y):
        return torch.sigmoid(net.run(net.body, y)) * 2.0 + y

    return net.run(outer, F.relu(net.stem(x)))


def normalized(net, x):
    x = F.gelu(net.stem(x))
    return net.run(lambda y: F.relu(net.norm(net.body(y))), x)


def in_place(net, x):
    def part(y):
        z = net.body[0](y)
        z += net.body[2](y)
        return z.relu_()

    return net.run(part, net.stem(x))


def skipping(net, x):
    x = F.relu(net.stem(x))
    for place in range(3):
        if place != 1 or not net.skips:
            x = x + net.run(net.body, x) * 2.0**place
    return x


def several(net, x):
    """Two tensors come in, one of them rounded before, and two go out."""

    def part(y, z):
        return net.body(y) + z, y * 2.0

    y = F.relu(net.stem(x))
    one, other = net.run(part, y, net.body[2](y))
    return one + other


def checkpoint_whole(function, *args):
    with set_checkpoint_early_stop(enable=False):
        return checkpoint(function, *args, use_reentrant=False)


FUNCTIONS = (residual, pending, nested, normalized, in_place, skipping, several)
SETTINGS = {
    "int8": (Symmetric(), Affine(), MovingAverage()),
    "int2, one scale": (Symmetric(bits=2, granularity="tensor"), Affine(), MinMax()),
    "histograms": (Symmetric(), Affine(), Percentile()),
}
RUNS = {
    "saved": partial(checkpoint, use_reentrant=False),
    "saved whole": checkpoint_whole,
    "reentrant": partial(checkpoint, use_reentrant=True),
}


def trained(net, settings, steps=5, watch=Watch.ALL, **kwargs):
    """Gradients of some steps, and what was learned of the network."""
    simulator, seen = Simulator(*settings), []
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        x = torch.randn(3, 2, 5, 5, generator=generator)
        net.skips = step % 2
        with simulator.observing(watch if simulator.is_ready else Watch.ALL):
            out = simulator.run(net, type(net).forward.__get__(net), (x,), kwargs)
        net.zero_grad()
        out.square().mean().backward()
        simulator.finish_batch()
        if simulator.learned.found_keys:
            simulator.learned.start()
        elif simulator.learned.keys:
            simulator.learned.update(lambda gradient: gradient, 0.01)
        seen.append({name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None})
    return seen, simulator.state_dict()


def twins(function):
    torch.manual_seed(0)
    net = Net(function).train()
    return net, copy.deepcopy(net)


@pytest.mark.parametrize("watch", [Watch.ALL, Watch.NEW], ids=["observing", "frozen"])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_checkpoints_change_neither_gradients_nor_ranges(function, settings, run, watch):
    net, twin = twins(function)
    twin.run = RUNS[run]
    expected, found = (trained(each, SETTINGS[settings], watch=watch) for each in (net, twin))
    assert same(found[0], expected[0])
    assert same(found[1], expected[1])


@pytest.mark.parametrize("run", ["saved", "reentrant"])
@pytest.mark.parametrize("function", [normalized, nested, pending, residual])
def test_checkpoints_change_no_learned_step(function, run):
    net, twin = twins(function)
    twin.run = RUNS[run]
    settings = (LearnedStep(bits=4), LearnedStepAffine(), MinMax())
    expected, found = (trained(each, settings) for each in (net, twin))
    assert same(found[0], expected[0])
    assert torch.allclose(found[1]["learned"]["trained"], expected[1]["learned"]["trained"], rtol=1e-6)


@pytest.mark.parametrize("kind", [CheckpointImpl.REENTRANT, CheckpointImpl.NO_REENTRANT])
@pytest.mark.filterwarnings("ignore:Please specify CheckpointImpl.NO_REENTRANT:FutureWarning")  # torch 2.8
def test_wrappers_of_fsdp_change_nothing(kind):
    net, twin = twins(residual)
    twin.body = checkpoint_wrapper(twin.body, checkpoint_impl=kind)
    expected, found = (trained(each, SETTINGS["int8"])[0] for each in (net, twin))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert same({name.replace("_checkpoint_wrapped_module.", ""): value for name, value in one.items()}, other)


@pytest.mark.parametrize("reentrant", [False, True])
def test_sequences_of_checkpoints_change_nothing(reentrant):
    net, twin = twins(residual)
    twin.run = lambda body, x: checkpoint_sequential(body, 2, x, use_reentrant=reentrant)
    assert same(trained(twin, SETTINGS["int8"])[0], trained(net, SETTINGS["int8"])[0])


def test_a_second_backward_through_a_graph_that_is_kept_computes_the_same():
    net, twin = twins(residual)
    twin.run = RUNS["saved"]
    gradients = []
    for each in (net, twin):
        simulator, x = Simulator(*SETTINGS["int8"]), torch.ones(2, 2, 5, 5).cumsum(3)
        for _ in range(3):
            with simulator.observing():
                out = simulator.run(each, type(each).forward.__get__(each), (x,), {})
            simulator.finish_batch()
        for _ in range(2):
            out.sum().backward(retain_graph=True)
        gradients.append([weight.grad for weight in each.parameters() if weight.grad is not None])
    assert same(*gradients)
