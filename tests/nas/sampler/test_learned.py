"""Gradients of architecture parameters, against derivatives worked by hand on two options."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.nas import (
    DARTS,
    GDAS,
    PCDARTS,
    ArchitectureSteps,
    ElasticWidth,
    ExpectedCost,
    InputChoice,
    OperationChoice,
    ProxylessNAS,
)
from lightning_optim.nas.forward.mixture import mix
from lightning_optim.nas.sampler.architecture_parameters import ArchitectureParameters
from lightning_optim.nas.space.base import Site
from lightning_optim.nas.supernet import build_supernet
from lightning_optim.schedule import Constant, Linear
from support import three_choices


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


FACTORS = (2.0, 5.0)
X = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


def toy():
    """One choice between doubling and multiplying by five; the loss is the sum of what it returns."""
    net = nn.Sequential(Times(FACTORS[0]))
    choice = OperationChoice(targets=Targets(include=["0"]), candidates={"five": lambda: Times(FACTORS[1])})
    return build_supernet(Site(root=net, network="", args=(X,)), {"choice": choice})


def set_values(state, values):
    with torch.no_grad():
        state.parameters.values["0:operation"].copy_(torch.tensor(values))


def gradient(supernet, state, path):
    supernet.activate(path.architecture)
    mix(supernet.site.root, path.mixtures)
    output = supernet.site.root(X)
    (found,) = torch.autograd.grad(output.sum(), [state.parameters.values["0:operation"]])
    return output, found


def softmax(values, temperature=1.0):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def through_softmax(shares, outer):
    """``d/dalpha_i sum_j p_j outer_j = p_i (outer_i - sum_j p_j outer_j)``."""
    mean = sum(share * value for share, value in zip(shares, outer, strict=True))
    return torch.tensor([share * (value - mean) for share, value in zip(shares, outer, strict=True)])


@pytest.mark.parametrize("skip", [None, 0.5])
def test_darts_is_the_weighted_sum_and_its_derivative(skip):
    supernet = toy()
    beside = None if skip is None else Constant(value=skip)
    state = DARTS(auxiliary_skip=beside, temperature=Constant(value=2.0)).start(supernet, 0)
    set_values(state, [0.3, -0.4])
    shares = softmax([0.3, -0.4], 2.0)
    output, found = gradient(supernet, state, state.architecture_path(0, 0.0))
    torch.testing.assert_close(output, (sum(p * f for p, f in zip(shares, FACTORS, strict=True)) + (skip or 0.0)) * X)
    torch.testing.assert_close(found, through_softmax(shares, [f * 10.0 for f in FACTORS]) / 2.0)
    (path,) = state.paths(0, 0.0)
    assert not any(weight.requires_grad for weight in path.mixtures["0:operation"].weights.values())


def test_pc_darts_sends_a_part_of_the_channels_through_and_the_others_past():
    supernet = toy()
    state = PCDARTS(channel_share=0.5).start(supernet, 0)
    set_values(state, [0.3, -0.4])
    shares = softmax([0.3, -0.4])
    path = state.architecture_path(3, 0.0)
    mask = path.mixtures["0:operation"].channels
    assert mask.sum() == 2
    output, found = gradient(supernet, state, path)
    mixed = sum(p * f for p, f in zip(shares, FACTORS, strict=True))
    torch.testing.assert_close(output, torch.where(mask, mixed * X, X))
    torch.testing.assert_close(found, through_softmax(shares, [f * float(X[0, mask].sum()) for f in FACTORS]))
    drawn = {tuple(state.architecture_path(step, 0.0).mixtures["0:operation"].channels.tolist()) for step in range(20)}
    assert len(drawn) > 1


class Halved(nn.Module):
    """Every second position, some number of times."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x[:, :, ::2, ::2]


def test_partial_channels_of_one_decision_in_places_of_several_widths_that_make_maps_smaller():
    # 4 channels, then 8: each of the first stands for two of the second, and the maximum of 2 x 2 goes past.
    net = nn.Sequential(Halved(2.0), nn.Conv2d(4, 8, 1), Halved(2.0))
    choice = OperationChoice(
        targets=Targets(include=["0", "2"]), candidates={"five": lambda: Halved(5.0)}, alike="[02]"
    )
    x = torch.randn(2, 4, 8, 8)
    supernet = build_supernet(Site(root=net, network="", args=(x,)), {"choice": choice})
    state = PCDARTS(channel_share=0.5).start(supernet, 0)
    set_values(state, [0.3, -0.4])
    path = state.architecture_path(0, 0.0)
    mask = path.mixtures["0:operation"].channels
    factor = sum(p * f for p, f in zip(softmax([0.3, -0.4]), FACTORS, strict=True))
    mix(net, path.mixtures)

    def by_hand(x, mask):
        return torch.where(mask.view(1, -1, 1, 1), factor * x[:, :, ::2, ::2], F.max_pool2d(x, 2))

    assert len(mask) == 4
    needed = by_hand(net[1](by_hand(x, mask)), mask.repeat_interleave(2))
    torch.testing.assert_close(net(x), needed)


@pytest.mark.parametrize("sampler", [DARTS(), GDAS(), PCDARTS(), ProxylessNAS()], ids=lambda each: type(each).__name__)
def test_inputs_are_learned_as_operations_are(sampler):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    space = {
        "one": InputChoice(targets=Targets(include=["3"]), sources=["0", "1"]),
        "sum": InputChoice(targets=Targets(include=["2"]), sources=["0"], combine="sum"),
        "operation": OperationChoice(targets=Targets(include=["3"]), candidates={"skip": nn.Identity}),
    }
    supernet = build_supernet(Site(root=net, network="", args=(X,)), space)
    state = sampler.start(supernet, 0)
    for step in range(12):  # an input that is drawn may leave out what is decided before it
        path = state.architecture_path(step, 0.5)
        supernet.activate(path.architecture)
        mix(net, path.mixtures)
        net(torch.randn(3, 4)).square().sum().backward()
    assert len(state.parameters.values) == 4
    assert all(value.grad.count_nonzero() >= 2 for value in state.parameters.values.values())


def test_gdas_runs_the_drawn_option_alone_and_learns_through_its_share():
    supernet = toy()
    state = GDAS(temperature=Constant(value=0.7)).start(supernet, 0)
    set_values(state, [0.3, -0.4])
    logs = torch.tensor([0.3, -0.4]).log_softmax(0)
    seen = set()
    for step in range(12):
        draw = state.draw(step, "architecture", "0:operation")
        noise = [-math.log(-math.log(draw.random())) for _ in range(2)]
        shares = softmax([float(log) + each for log, each in zip(logs, noise, strict=True)], 0.7)
        option = shares.index(max(shares))
        output, found = gradient(supernet, state, state.architecture_path(step, 0.0))
        torch.testing.assert_close(output, FACTORS[option] * X)
        outer = [FACTORS[option] * 10.0 if each == option else 0.0 for each in range(2)]
        # log_softmax subtracts the same from both: it changes no share
        torch.testing.assert_close(found, through_softmax(shares, outer) / 0.7, rtol=1e-4, atol=1e-5)
        seen.add(option)
    assert seen == {0, 1}
    (path,) = state.paths(0, 0.5)
    assert not path.mixtures


def test_proxyless_opens_one_gate_and_learns_from_both():
    supernet = toy()
    state = ProxylessNAS().start(supernet, 0)
    set_values(state, [0.3, -0.4])
    shares, opened = softmax([0.3, -0.4]), set()
    for step in range(12):
        path = state.architecture_path(step, 0.0)
        output, found = gradient(supernet, state, path)
        option = path.architecture["0:operation"]
        torch.testing.assert_close(output, FACTORS[option] * X)
        torch.testing.assert_close(found, through_softmax(shares, [f * 10.0 for f in FACTORS]))
        opened.add(option)
    assert opened == {0, 1}


def test_proxyless_leaves_the_probabilities_of_options_that_were_not_drawn():
    state = ProxylessNAS().start(three_choices(5), 0)
    values = state.parameters.values["1:operation"]
    before = {name: value.detach().clone() for name, value in state.parameters.values.items()}
    pair = list(state.architecture_path(7, 0.0).mixtures["1:operation"].weights)
    with torch.no_grad():
        values[pair] += torch.tensor([0.8, 0.1])
    state.settle(7, before)
    after, old = values.softmax(0), before["1:operation"].softmax(0)
    rest = [option for option in range(5) if option not in pair]
    torch.testing.assert_close(after[rest], old[rest])
    assert after[pair[0]] > old[pair[0]]


@pytest.mark.parametrize("sampler", [DARTS(), GDAS(), PCDARTS(), ProxylessNAS()], ids=lambda each: type(each).__name__)
def test_paths_are_a_function_of_seed_step_and_parameters(sampler):
    supernet = three_choices(3)

    def seen(seed):
        state = sampler.start(supernet, seed)
        paths = [path for step in range(6) for path in (*state.paths(step, 0.3), state.architecture_path(step, 0.3))]
        return [(path.architecture, {name: list(each.weights) for name, each in path.mixtures.items()},
                 [each.channels is not None and each.channels.tolist() for each in path.mixtures.values()])
                for path in paths]  # fmt: skip

    assert seen(0) == seen(0)
    assert seen(0) != seen(1)


def test_pick_is_the_option_of_the_largest_parameter():
    state = DARTS().start(three_choices(3), 0)
    with torch.no_grad():
        state.parameters.values["0:operation"].copy_(torch.tensor([0.1, 0.3, 0.2]))
        state.parameters.values["1:operation"].copy_(torch.tensor([0.5, 0.3, 0.5]))
        state.parameters.values["2:operation"].copy_(torch.tensor([0.0, 0.1, 0.2]))
    assert state.parameters.pick() == {"0:operation": 1, "1:operation": 0, "2:operation": 2}
    assert not torch.equal(*(ArchitectureParameters(three_choices(3).space, seed).values["0:operation"]
                             for seed in (0, 1)))  # fmt: skip


def priced():
    """Layers of 16, 0 and 32 multiplications beside one of 16 that stays."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    wide = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    choice = OperationChoice(targets=Targets(include=["0"]), candidates={"skip": nn.Identity, "wide": wide})
    return build_supernet(Site(root=net, network="", args=(X,)), {"choice": choice})


def test_expected_cost_is_exact_for_one_decision_and_its_gradient_that_of_the_sum():
    cost = ExpectedCost(weight=2.0, target=20.0)
    state = DARTS(cost=cost).start(priced(), 0)
    set_values(state, [0.0, 0.5, 1.0])
    shares, costs = softmax([0.0, 0.5, 1.0]), [32.0, 16.0, 48.0]
    expected = sum(share * each for share, each in zip(shares, costs, strict=True))
    term = state.cost_term()
    assert term.item() == pytest.approx(2.0 * (expected / 20.0 - 1.0))
    (found,) = torch.autograd.grad(term, [state.parameters.values["0:operation"]])
    torch.testing.assert_close(found, through_softmax(shares, costs) * 2.0 / 20.0)
    relaxed = DARTS(cost=ExpectedCost(target=1000.0)).start(priced(), 0)
    assert relaxed.cost_term().item() == 0.0
    always = DARTS(cost=ExpectedCost(weight=1.0)).start(priced(), 0)
    assert always.cost_term().item() == pytest.approx(1.0, abs=1e-3)  # (32 + 16 + 48) / 3 over the own 32
    assert DARTS().start(priced(), 0).cost_term() is None


def test_a_target_below_the_cheapest_is_refused():
    with pytest.raises(ValueError, match=r"cannot reach target=10 \(MACs\): the cheapest architecture costs 16"):
        DARTS(cost=ExpectedCost(target=10.0)).start(priced(), 0)


def test_widths_are_refused_by_name():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    space = {"width": ElasticWidth(targets=Targets(include=["0"]))}
    supernet = build_supernet(Site(root=net, network="", args=(X,)), space)
    with pytest.raises(ValueError, match=r"GDAS mixes the outputs of operations, which cannot be done for '0:width'"):
        GDAS().start(supernet, 0)


def test_partial_channels_need_a_choice_that_keeps_its_shape():
    net = nn.Sequential(nn.Linear(4, 2))
    choice = OperationChoice(targets=Targets(include=["0"]), candidates={"other": lambda: nn.Linear(4, 2)})
    supernet = build_supernet(Site(root=net, network="", args=(X,)), {"choice": choice})
    with pytest.raises(ValueError, match="'0' does not return the shape that it receives"):
        PCDARTS().start(supernet, 0)
    state = DARTS(auxiliary_skip=Constant(value=1.0)).start(supernet, 0)  # there is no skip connection to add
    mix(net, state.architecture_path(0, 0.0).mixtures)
    assert net(X).shape == (1, 2)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 1 at the start and 0 at the end"):
        DARTS(temperature=Linear(start=1.0, end=0.0))
    with pytest.raises(ValueError, match=r"channel_share must lie in \(0, 1\]"):
        PCDARTS(channel_share=0.0)
    with pytest.raises(ValueError, match=r"set steps\.weight_decay to 0"):
        ProxylessNAS(steps=ArchitectureSteps(weight_decay=0.1))
    for settings in ({"held_out": 1.0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}, {"warmup": 1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ArchitectureSteps(**settings)
    with pytest.raises(ValueError, match="weight must be above 0"):
        ExpectedCost(weight=0.0)
    with pytest.raises(ValueError, match="target must be above 0"):
        ExpectedCost(target=-1.0)
