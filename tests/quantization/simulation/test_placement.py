import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.simulator import Simulator
from support import observe


@pytest.mark.parametrize("bound", [nn.ReLU6, lambda inplace: nn.Hardtanh(0.0, 6.0, inplace=inplace)])
def test_a_bounded_relu_in_place_has_the_gradients_of_one_that_is_not(bound):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)
    x, gradients = 5 * torch.randn(4, 1, 8, 8), {}
    for inplace in (False, True):
        first, norm, last = copy.deepcopy(layers)
        net = nn.Sequential(first, norm, bound(inplace=inplace), last)
        simulator = Simulator(Symmetric(), Affine(), MinMax())
        for _ in range(4):
            net.zero_grad()
            with simulator.observing():
                out = simulator.run(net, net.forward, (x,), {}, fold=True)
            out.square().sum().backward()
            simulator.finish_batch()
        gradients[inplace] = [parameter.grad.clone() for parameter in net.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(*gradients.values(), strict=True))
    assert gradients[True][0].abs().sum() > 0


class Overwriting(nn.Module):
    """Changes a tensor after an addition has read it; ``write`` takes the tensor and returns the changed one."""

    def __init__(self, write):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)
        self.write = write

    def forward(self, x):
        one, other = self.first(x), self.second(x)
        total = one + other
        return self.last(total) + self.last(self.write(one))


def write_through_view(x):
    x[:, :2].mul_(2.0)
    return x


def write_part(x):
    x[:, :2] = 2.0 * x[:, :2]
    return x


def gradients_of(net, x, finish=lambda out: out):
    """Gradients of the third pass, the first that is simulated, with values that are clipped."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    for factor in (0.3, 0.3, 1.0):
        net.zero_grad()
        with simulator.observing() if factor < 1.0 else nullcontext():
            out = simulator.run(net, net.forward, (factor * x,), {}, fold=True)
        finish(out).square().sum().backward()
        simulator.finish_batch()
    return [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize(
    ("in_place", "plain"),
    [
        (lambda x: x.relu_(), lambda x: x.relu()),
        (lambda x: x.sigmoid_(), lambda x: x.sigmoid()),
        (lambda x: x.add_(x), lambda x: x + x),
    ],
    ids=["relu_", "sigmoid_", "add_"],
)
def test_a_tensor_that_was_read_may_be_overwritten(in_place, plain):
    x = 5 * torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    found, expected = (gradients_of(Overwriting(write), x) for write in (in_place, plain))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in found)


class Activated(Overwriting):
    """Changes part of what an operator without integers put out, after an addition has read it."""

    def forward(self, x):
        one = 0.5 * self.first(x)
        total = one + self.second(x)
        return self.last(total) + self.last(self.write(one))


@pytest.mark.parametrize("write", [write_through_view, write_part])
def test_part_of_a_tensor_that_was_read_may_be_overwritten(write):
    x = 5 * torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    found = gradients_of(Activated(write), x)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found)


@pytest.mark.parametrize("grad", [True, False])
def test_values_that_were_changed_through_a_view_are_read_anew(grad):
    torch.manual_seed(0)
    net, x = Activated(write_through_view), torch.randn(4, 2, 8, 8)
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    for _ in range(4):
        with torch.set_grad_enabled(grad), simulator.observing():
            out = simulator.run(net, net.forward, (x,), {})
        simulator.finish_batch()
    assert (out - net(x)).abs().max() < 0.02 * out.abs().max()


def test_a_caller_may_overwrite_what_the_network_returned():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)

        def forward(self, x):
            gate = 0.5 * self.first(x)
            return self.last(gate + self.second(x)), gate

    x, found = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1)), []
    for overwrites in (True, False):

        def finish(outputs, overwrites=overwrites):
            out, gate = outputs
            return (gate.mul_(2.0) if overwrites else 2.0 * gate).square().sum() + out

        found.append(gradients_of(Both(), x, finish))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


class Mean(nn.Module):
    """Reads its input without keeping it, unlike a convolution."""

    def forward(self, x):
        return x.mean((2, 3))


def test_a_caller_may_overwrite_what_the_network_was_given():
    found = []
    for overwrites in (True, False):
        torch.manual_seed(0)
        net, stem = Mean(), nn.Conv2d(2, 2, 1)
        simulator = Simulator(Symmetric(), Affine(), MinMax())
        for factor in (0.3, 0.3, 1.0):
            stem.zero_grad()
            given = stem(factor * torch.randn(4, 2, 8, 8))
            with simulator.observing() if factor < 1.0 else nullcontext():
                out = simulator.run(net, net.forward, (given,), {})
            (out.sum() + (given.mul_(2.0) if overwrites else 2.0 * given).square().sum()).backward()
            simulator.finish_batch()
        found.append(stem.weight.grad.clone())
    assert torch.equal(*found)


def test_an_optimizer_may_change_a_parameter_that_is_read_as_an_activation():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.randn(2))

        def forward(self, x):
            return x + self.shift

    torch.manual_seed(0)
    net, x, simulator = Shifted(), torch.randn(4, 2), Simulator(Symmetric(), Affine(), MinMax())
    observe(simulator, net, x, steps=2)
    out = simulator.run(net, net.forward, (x,), {})
    with torch.no_grad():
        net.shift *= 3.0
    out.sum().backward()
    assert net.shift.grad.tolist() == [4.0, 4.0]


def simulated_thrice(net, *inputs):
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    observe(simulator, net, *inputs, steps=2)
    return simulator.run(net, net.forward, inputs, {})


def test_a_gradient_inside_the_network_frees_what_is_no_longer_needed():
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            hidden = 0.5 * self.first(x)
            (force,) = torch.autograd.grad(self.second(hidden + x.sum()).sum(), x)
            return force, hidden

    torch.manual_seed(0)
    force, _ = simulated_thrice(Force(), torch.randn(5, 3, requires_grad=True))
    assert force.isfinite().all()


def test_a_network_may_return_what_has_no_memory():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)

        def forward(self, x):
            hidden = 0.5 * self.first(x)
            return (hidden + x).sum(), x.detach().to_sparse()

    out, sparse = simulated_thrice(Sparse(), torch.randn(5, 3))
    out.backward()
    assert sparse.is_sparse


def test_a_pass_without_backward_leaves_nothing_behind():
    torch.manual_seed(0)
    net, seen = Overwriting(lambda x: x.relu_()), []
    handle = net.first.register_forward_hook(lambda *call: seen.append(weakref.ref(call[2])))
    gc.collect()
    gc.disable()
    try:
        out = simulated_thrice(net, torch.randn(2, 2, 6, 6))
        del out
        assert len(seen) == 3
        assert all(each() is None for each in seen)
    finally:
        gc.enable()
        handle.remove()
