import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.fold import fold_batch_norm
from lightning_optim.quantization.simulation.rounding_backend import SimulationBackend
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.table import placement_rows
from support import observe


class Net(nn.Module):
    """Runs a function of its layers, so that a test says in one line what it is about."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def learned(net, *args, excluded=(), weight=None, **kwargs):
    simulator = Simulator(weight or Symmetric(), Affine(), MinMax())
    simulator.place(frozenset(excluded), {})
    observe(simulator, net, *args, **kwargs, steps=2)
    return simulator


def rows(simulator):
    return {row.key: row for row in placement_rows(simulator.plan, simulator.ranges)}


def conv(inputs=3, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def trained_norm(channels=4):
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.running_var):
            tensor.uniform_(0.5, 2.0)
        for tensor in (norm.bias, norm.running_mean):
            tensor.normal_()
    return norm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_folding_changes_nothing_in_evaluation():
    layer, norm, x = conv().double(), trained_norm().double().eval(), torch.randn(2, 3, 5, 5).double()
    weight, bias = fold_batch_norm(layer.weight, layer.bias, norm)
    assert torch.allclose(F.conv2d(x, weight, bias, padding=1), norm(layer(x)))


def largest_value(weight):
    return weight.abs().amax((1, 2, 3))


def largest_pair(weight):
    pairs = F.pad(weight.permute(0, 2, 3, 1).reshape(len(weight), -1), (0, 1)).unflatten(1, (-1, 2))
    return torch.maximum(pairs.relu().sum(2), (-pairs).relu().sum(2)).amax(1)


@pytest.mark.parametrize(("portable", "largest"), [(False, largest_value), (True, largest_pair)])
def test_evaluation_is_the_deployed_arithmetic(portable, largest):
    net = Net(lambda net, x: F.relu(net.norm(net.conv(x))), conv=conv(), norm=trained_norm()).eval()
    x = torch.randn(8, 3, 5, 5)
    simulator = learned(net, x, weight=Symmetric(portable=portable))
    ranges = simulator.ranges
    (in_scale, in_zero), (out_scale, out_zero) = (
        ranges.qparams(key, torch.device("cpu")) for key in ("conv:conv2d<0", "conv:conv2d")
    )
    whole = lambda x, scale, zero: torch.clamp(torch.round(x / scale) + zero, 0, 255)  # noqa: E731  # brevity
    weight, bias = fold_batch_norm(net.conv.weight, net.conv.bias, net.norm)
    scale = largest(weight) / 127
    integers = torch.round(weight / scale.view(-1, 1, 1, 1))
    accumulator = F.conv2d(
        (whole(x, in_scale, in_zero) - in_zero).double(),
        integers.double(),
        torch.round(bias / (in_scale * scale)).double(),
        padding=1,
    )
    real = (accumulator * (in_scale * scale).view(1, -1, 1, 1)).float().relu()
    expected = (whole(real, out_scale, out_zero) - out_zero) * out_scale
    steps = (simulator.run(net, net.forward, (x,), {}) - expected).abs() / out_scale
    assert out_zero == 0
    assert steps.max() < 1.01
    assert (steps > 0.5).float().mean() < 0.01


@pytest.mark.parametrize("weight", [Symmetric(), Symmetric(granularity="tensor")])
def test_training_uses_the_statistics_of_the_batch_until_frozen(weight):
    net = Net(lambda net, x: net.norm(net.conv(x)), conv=conv(), norm=trained_norm())
    x = torch.randn(16, 3, 5, 5)
    simulator = learned(net, x, weight=weight)
    before = net.norm.running_mean.clone()
    out = simulator.run(net, net.forward, (x,), {})
    assert not torch.equal(before, net.norm.running_mean)
    assert torch.allclose(out.mean((0, 2, 3)), net.norm.bias, atol=0.05)
    before = net.norm.running_mean.clone()
    frozen = simulator.run(net, net.forward, (x,), {}, fold=True)
    assert torch.equal(before, net.norm.running_mean)
    assert torch.equal(frozen, simulator.run(net.eval(), net.forward, (x,), {}))
    frozen.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def residual(net, x):
    return F.relu(net.second(net.first(x)) + x)


def residual_in_place(net, x):
    y = net.second(net.first(x))
    y += x
    return F.relu(y, inplace=True)


def residual_statement(net, x):
    y = net.second(net.first(x))
    y.add_(x)
    y.relu_()
    return y


@pytest.mark.parametrize("function", [residual_in_place, residual_statement])
def test_in_place_operators_compute_what_the_others_do(function):
    layers = {"first": conv(4, 4), "second": conv(4, 4)}
    x = torch.randn(4, 4, 5, 5)
    outs, gradients = [], []
    for each in (residual, function):
        net = Net(each, **copy.deepcopy(layers))
        out = learned(net, x).run(net, net.forward, (x,), {})
        out.square().sum().backward()
        outs.append(out)
        gradients.append(net.first.weight.grad)
    assert torch.equal(*outs)
    assert torch.equal(*gradients)


def test_functional_operators_are_seen_and_named_by_their_module():
    def function(net, x):
        y = torch.cat([net.conv(x), F.relu(net.conv(x))], 1)
        y = F.max_pool2d(y, 2)
        y = F.adaptive_avg_pool2d(y, 1).flatten(1)
        return y @ y.t()

    simulator = learned(Net(function, conv=conv()), torch.randn(2, 3, 4, 4))
    kinds = {key: row.computes for key, row in rows(simulator).items()}
    assert kinds == {
        "conv:conv2d": "integer",
        "conv#2:conv2d": "integer",
        ":relu[conv#2]": "integer",
        ":cat[conv#2]": "integer",
        ":adaptive_avg_pool2d[conv#2]": "integer",
        ":matmul[conv#2]": "integer",
    }


def test_what_an_integer_operator_puts_out_is_on_its_grid_even_for_a_float_reader():
    seen = []

    def function(net, x):
        return F.gelu(net.conv(x))

    net = Net(function, conv=conv())
    x = torch.randn(2, 3, 4, 4)
    simulator = learned(net, x)
    handle = net.conv.register_forward_hook(lambda _m, _a, out: seen.append(out))
    out = simulator.run(net, net.forward, (x,), {})
    handle.remove()
    scale, zero = simulator.ranges.qparams("conv:conv2d", torch.device("cpu"))
    rounded = (torch.clamp(torch.round(seen[0] / scale) + zero, 0, 255) - zero) * scale
    assert torch.allclose(out, F.gelu(rounded))
    assert rows(simulator)[":gelu[conv]"].note == "no integer kernel"


def test_a_relu_beside_another_reader_gets_quantized_values():
    def function(net, x):
        y = net.conv(x)
        return F.relu(y) + y

    net = Net(function, conv=conv())
    x = torch.randn(2, 3, 4, 4)
    simulator = learned(net, x)
    assert "conv:conv2d" in simulator.plan.shared
    assert simulator.ranges.range_of("conv:conv2d")[0] < 0


def test_excluded_modules_stay_in_floating_point():
    net = Net(lambda net, x: net.second(net.first(x)), first=conv(), second=conv(4, 4))
    x = torch.randn(2, 3, 4, 4)
    simulator = learned(net, x, excluded={"second"})
    table = rows(simulator)
    assert (table["first:conv2d"].computes, table["second:conv2d"].computes) == ("integer", "float")
    assert table["second:conv2d"].note == "left out by targets"


def test_keyword_inputs_and_structured_outputs_pass():
    def function(net, x, *, mask=None):
        return {"logits": net.fc(x), "other": [net.fc(x * mask), None, 3]}

    net = Net(function, fc=nn.Linear(3, 2))
    x, mask = torch.randn(4, 3), torch.tensor([1.0, 0.0, 1.0])
    out = learned(net, x, mask=mask).run(net, net.forward, (x,), {"mask": mask})
    assert set(out) == {"logits", "other"}
    assert out["other"][1:] == [None, 3]


def test_a_read_without_gradients_does_not_cut_those_of_the_next():
    def function(net, x):
        y = net.first(x)
        with torch.no_grad():
            net.second(y)
        return net.second(y)

    net = Net(function, first=nn.Linear(3, 3), second=nn.Linear(3, 2))
    x = torch.randn(4, 3)
    learned(net, x).run(net, net.forward, (x,), {}).sum().backward()
    assert net.first.weight.grad.abs().sum() > 0


def test_memory_is_freed_without_gradients():
    refs = []

    def function(net, x):
        y = net.first(x)
        refs.append(weakref.ref(y))
        y = net.second(y)
        refs.append(weakref.ref(y))
        y = net.second(y)
        alive.append(refs[-2]() is not None)
        return y

    alive = []
    net = Net(function, first=conv(3, 3), second=conv(3, 3))
    x = torch.randn(1, 3, 4, 4)
    simulator = learned(net, x)
    with torch.no_grad():
        simulator.run(net, net.forward, (x,), {})
    assert alive[-1] is False


def test_zeros_stay_zeros():
    net = Net(lambda net, x: net.norm(net.conv(x)), conv=conv(), norm=trained_norm())
    with torch.no_grad():
        net.conv.weight[0] = 0
        net.conv.weight[1, 0] = 0
    x = torch.randn(4, 3, 4, 4)
    simulator = learned(net, x)
    backend = SimulationBackend(
        simulator.ranges,
        simulator.weight_quantizer_of,
        simulator.activations.quantizer_of,
        observes=False,
        folds_all=True,
    )
    weight, bias = backend.weight(net.conv.weight, net.conv.bias, "conv:conv2d", "conv:conv2d<0", net.norm)
    assert weight[0].abs().max() == 0
    assert weight[1, 0].abs().max() == 0
    folded = fold_batch_norm(net.conv.weight, net.conv.bias, net.norm)[1]
    assert torch.allclose(bias, folded, atol=1e-3)


def test_copies_and_pickles_hold_what_was_learned():
    net = Net(lambda net, x: net.fc(x), fc=nn.Linear(3, 2))
    x = torch.randn(4, 3)
    simulator = learned(net, x)
    expected = simulator.run(net, net.forward, (x,), {})
    for twin in (copy.deepcopy(simulator), pickle.loads(pickle.dumps(simulator))):  # noqa: S301  # our own bytes
        assert torch.equal(twin.run(net, net.forward, (x,), {}), expected)


def test_simulated_forward_leaves_the_network_alone():
    net = Net(lambda net, x: net.norm(net.conv(x)), conv=conv(), norm=trained_norm())
    x = torch.randn(4, 3, 4, 4)
    simulator = learned(net, x)
    before = copy.deepcopy(net.state_dict())
    simulator.forward_of(net)(x)
    assert net.training
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


def test_without_ranges_nothing_can_be_simulated():
    with pytest.raises(RuntimeError, match="train at least two batches"):
        Simulator(Symmetric(), Affine(), MinMax()).forward_of(nn.Linear(1, 1))


def test_a_bound_beside_another_reader_has_a_range_of_its_own():
    net = Net(lambda net, x: F.relu6(y := net.conv(x)) + y, conv=conv())
    simulator = learned(net, 20 * torch.randn(4, 3, 8, 8))
    assert simulator.ranges.range_of(":relu6[conv]") == (0.0, 6.0)
    assert simulator.ranges.range_of("conv:conv2d")[0] < 0.0


def test_a_bound_on_both_sides_is_no_relu():
    net = Net(lambda net, x: net.conv(F.hardtanh(net.stem(x))), stem=conv(outputs=3), conv=conv())
    simulator = learned(net, 20 * torch.randn(4, 3, 8, 8))
    assert rows(simulator)[":hardtanh[stem]"].note == "it does not begin at zero"
    assert simulator.ranges.range_of(":hardtanh[stem]") == (-1.0, 1.0)


@pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -1e4, -100.0, 0.0])
def test_a_mask_leaves_the_scores_as_they_are(low):
    def attend(net, x, keep):
        scores = net.query(x) @ net.key(x).transpose(1, 2) + torch.zeros(4, 1, 6).masked_fill(~keep, low)
        return scores.reshape(4, 1, 6, 6).softmax(-1).flatten(1, 2) @ net.value(x)

    net = Net(attend, **{name: nn.Linear(8, 8) for name in ("query", "key", "value")})
    x, keep = torch.randn(4, 6, 8), torch.ones(4, 1, 6, dtype=torch.bool)
    keep[:, :, 4:] = False
    simulator = learned(net, x, keep)
    assert rows(simulator)[":add[key]"].computes == "float"
    expected = net(x, keep)
    error = (simulator.forward_of(net)(x, keep) - expected).abs().max() / expected.abs().max()
    assert error < 0.1  # with the mask in the range, only an average would be left: 0.4


def test_a_sum_that_others_read_beside_softmax_is_an_integer():
    net = Net(lambda net, x: (y := net.one(x) + net.two(x)).softmax(-1) + y, one=nn.Linear(4, 4), two=nn.Linear(4, 4))
    assert rows(learned(net, torch.randn(8, 4)))[":add[two]"].computes == "integer"


def test_noise_that_is_drawn_in_training_alone_shifts_no_range():
    def block(net, x):
        y = net.conv(x)
        if net.training:  # stochastic depth, as EfficientNet's code writes it
            y = y / 0.8 * (0.8 + torch.rand(len(x), 1, 1, 1)).floor()
        return y + x

    net = Net(block, conv=conv(outputs=3))
    x = torch.randn(4, 3, 8, 8)
    simulator = learned(net.train(), x)
    low, high = simulator.ranges.range_of(":add[conv]")
    assert low < -1.0
    assert high > 1.0
    out = simulator.forward_of(net.eval())(x)
    assert (out - net(x)).abs().median() < 0.03  # the range of noise, 0.8 to 1.8, would cut most values off


def test_it_observes_inside_the_context_alone_whatever_happens_there():
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    with pytest.raises(ZeroDivisionError), simulator.observing():
        1 // (not simulator.is_observing)
    assert not simulator.is_observing
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    simulator.run(net, net.forward, (x,), {})
    simulator.finish_batch()
    assert simulator.plan is None
