import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend
from torch.utils.flop_counter import FlopCounterMode

import lightning_optim.quantization.compilation.compiled
from lightning_optim.demo import ResidualNet, VisionTransformer
from lightning_optim.quantization import (
    Affine,
    Entropy,
    LearnedStep,
    LearnedStepAffine,
    MovingAverage,
    Symmetric,
    TrainedTernary,
)
from lightning_optim.quantization.compilation.compiled import CompiledSimulation
from lightning_optim.quantization.simulation.simulator import Simulator
from support import needs_graphs_of_its_own

pytestmark = needs_graphs_of_its_own


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Twice(nn.Module):
    """One layer that is called twice, keywords, an in-place operator, an attribute and two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 5)
        self.same = self.first

    def forward(self, x, *, shift):
        x = F.relu(self.first(x.flatten(1)[:, :12]), inplace=True)
        x = self.same(x + shift)
        return {"out": self.second(x), "mean": (x @ x.T).mean()}


class Overwriting(nn.Module):
    """Overwrites what an addition has read."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.first(x.flatten(1)[:, :12])
        total = x + x.mean()
        return self.second(total) + self.second(x.relu_())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, x):
        x = self.layer(x.flatten(1)[:, :12])
        return x if x.sum() > 0 else -x


def simulator_of(**settings):
    return Simulator(
        settings.get("weight", Symmetric()),
        settings.get("activation", Affine()),
        settings.get("observer", MovingAverage()),
    )


def counting(name="aot_eager"):
    compiler, graphs = lookup_backend(name), []

    def compile_graph(graph, inputs):
        graphs.append(graph)
        return compiler(graph, inputs)

    return compile_graph, graphs


def batches(count=5):
    generator = torch.Generator().manual_seed(0)
    return [(1 + place) * torch.randn(4, 1, 16, 16, generator=generator) for place in range(count)]


def loss_of(out):
    return sum(leaf.square().mean() for leaf in (out.values() if isinstance(out, dict) else [out]))


def train(network, run, simulator, folds_from=4, **kwargs):
    """Outputs and gradients of some steps, the last of them with folded batch norms, and an output in evaluation."""
    seen, forward = [], type(network).forward.__get__(network)
    for place, batch in enumerate(batches()):
        network.zero_grad()
        with simulator.observing():
            loss = loss_of(run(forward, (batch,), kwargs, fold=place >= folds_from))
        loss.backward()
        simulator.finish_batch()
        if simulator.learned.found_keys:
            simulator.learned.start()
        elif simulator.learned.keys:
            simulator.learned.update(lambda gradient: gradient, 0.01)
        seen += [loss.detach(), *(parameter.grad.clone() for parameter in network.parameters())]
    network.eval()
    with torch.no_grad():
        for _ in range(2):  # the first shows how many tensors come back
            seen.append(loss_of(run(forward, (batches(1)[0],), kwargs)))
    return [*seen, *network.state_dict().values()]


NETWORKS = {
    "residual": ("eager", lambda: ResidualNet(widths=(4,)), {}),
    "transformer": (
        "eager",
        lambda: VisionTransformer(patch=8, dim=16, depth=1, num_heads=2, hidden=16, num_classes=3),
        {},
    ),
    "twice": ("aot_eager", Twice, {"shift": torch.ones(12)}),
    "overwriting": ("eager", Overwriting, {}),
    "overwriting, traced": ("aot_eager", Overwriting, {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_compiled_graph_computes_and_learns_what_the_simulation_in_python_does(name):
    backend, make, kwargs = NETWORKS[name]
    torch.manual_seed(0)
    plain = make().train()
    twin, python, compiled = copy.deepcopy(plain), simulator_of(), simulator_of()
    compiler, graphs = counting(backend)
    simulation = CompiledSimulation(compiled, twin, compiler)
    expected = train(plain, partial(python.run, plain), python, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = train(twin, simulation.run, compiled, **kwargs)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    for one, other in zip(*(each.ranges.state_dict()["observer"].values() for each in (python, compiled)), strict=True):
        assert torch.equal(one, other)
    assert python.ranges.keys == compiled.ranges.keys
    assert len(graphs) == 3  # observing, observing with folded norms, and evaluation: one graph each, for all ranges


@pytest.mark.slow
def test_inductors_kernels_stay_within_a_step_of_the_output():
    torch.manual_seed(0)
    plain = ResidualNet(widths=(4, 8)).train()
    twin, python, compiled = copy.deepcopy(plain), simulator_of(), simulator_of()
    simulation = CompiledSimulation(compiled, twin, lookup_backend("inductor"))
    train(plain, partial(python.run, plain), python)
    train(twin, simulation.run, compiled)
    (batch,) = batches(1)
    out = [
        run(type(net).forward.__get__(net), (batch,), {})
        for net, run in ((plain, partial(python.run, plain)), (twin, simulation.run))
    ]
    scale = python.ranges.qparams(python.ranges.keys[-1], torch.device("cpu"))[0]
    assert (out[0] - out[1]).abs().max() <= 1.01 * scale


class Effects(nn.Module):
    """Does something besides what it returns."""

    def __init__(self, effect):
        super().__init__()
        self.first, self.second, self.effect = nn.Linear(12, 12), nn.Linear(12, 5), effect

    def forward(self, x):
        x = self.first(x.flatten(1)[:, :12])
        if self.effect == "write":
            x[:, 0] = 0.0
        elif self.effect == "keep":
            self.kept = x
        elif self.effect == "no_grad":
            with torch.no_grad():
                gate = self.second(x).mean()
            x = x * gate
        elif self.effect == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = (x @ x.T @ x).float()
        return self.second(F.relu(x))


@pytest.mark.parametrize("effect", ["write", "keep", "no_grad", "autocast"])
def test_what_a_graph_would_lose_is_simulated_in_python_and_says_so(effect):
    torch.manual_seed(0)
    plain = Effects(effect).train()
    twin, python, compiled = copy.deepcopy(plain), simulator_of(), simulator_of()
    compiler, graphs = counting("eager")
    simulation = CompiledSimulation(compiled, twin, compiler)
    expected = train(plain, partial(python.run, plain), python)
    with pytest.warns(UserWarning, match="Effects is simulated uncompiled"):
        found = train(twin, simulation.run, compiled)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert len(graphs) == (effect == "no_grad")  # in evaluation there are no gradients to switch off


def test_a_batch_with_infinities_is_left_to_python():
    network, simulator = ResidualNet(widths=(4,)).train(), simulator_of()
    compiler, graphs = counting("eager")
    simulation, forward = CompiledSimulation(simulator, network, compiler), type(network).forward.__get__(network)
    (batch,) = batches(1)
    with simulator.observing():
        for one in (batch, batch / 0.0, batch):
            simulation.run(forward, (one,), {})
            simulator.finish_batch()
        assert not graphs
        simulation.run(forward, (batch,), {})
    assert len(graphs) == 1


@pytest.mark.parametrize("way", ["stance", "mode", "disabled"])
def test_where_nothing_is_compiled_it_is_simulated_in_python(way):
    contexts = {
        "stance": lambda: torch.compiler.set_stance("force_eager"),
        "mode": lambda: FlopCounterMode(display=False),
        "disabled": lambda: torch._dynamo.config.patch(disable=True),
    }
    torch.manual_seed(0)
    plain = ResidualNet(widths=(4,)).train()
    twin, python, compiled = copy.deepcopy(plain), simulator_of(), simulator_of()
    compiler, graphs = counting("eager")
    simulation = CompiledSimulation(compiled, twin, compiler)
    expected = train(plain, partial(python.run, plain), python)
    with contexts[way]():
        found = train(twin, simulation.run, compiled)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert not graphs


def test_what_cannot_be_one_graph_is_simulated_in_python_and_says_so():
    torch.manual_seed(0)
    plain = Branching().train()
    twin, python, compiled = copy.deepcopy(plain), simulator_of(), simulator_of()
    compiler, graphs = counting()
    simulation = CompiledSimulation(compiled, twin, compiler)
    expected = train(plain, partial(python.run, plain), python)
    with pytest.warns(UserWarning, match="Branching is simulated uncompiled"):
        found = train(twin, simulation.run, compiled)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert not graphs


def test_more_shapes_than_graphs_are_simulated_in_python_and_two_networks_share_no_limit(monkeypatch):
    monkeypatch.setattr(lightning_optim.quantization.compilation.compiled, "_MOST_GRAPHS", 2)
    for _ in range(2):
        torch.manual_seed(0)
        network, simulator = ResidualNet(widths=(4,)).train(), simulator_of()
        compiler, graphs = counting("eager")
        simulation, forward = CompiledSimulation(simulator, network, compiler), type(network).forward.__get__(network)
        (batch,) = batches(1)
        with simulator.observing():
            for rows in (4, 4, 4, 3):
                simulation.run(forward, (batch[:rows],), {})
                simulator.finish_batch()
        assert len(graphs) == 2
        with pytest.warns(UserWarning, match="more than 2 shapes"), simulator.observing():
            assert len(simulation.run(forward, (batch[:2],), {})) == 2
        assert len(graphs) == 2


class Detour(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.more, self.takes_more = nn.Linear(12, 5), nn.Linear(5, 5), False

    def forward(self, x):
        x = self.layer(x.flatten(1)[:, :12])
        return self.more(x) if self.takes_more else x


def test_a_branch_that_comes_later_runs_uncompiled_until_its_ranges_are_known():
    torch.manual_seed(0)
    network, simulator = Detour().train(), simulator_of()
    compiler, graphs = counting()
    simulation, forward = CompiledSimulation(simulator, network, compiler), type(network).forward.__get__(network)
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for place, batch in enumerate(batches(8)):
            network.takes_more = place >= 4
            with simulator.observing():
                simulation.run(forward, (batch,), {})
            simulator.finish_batch()
            counts.append(len(graphs))
    assert counts == [0, 0, 1, 1, 1, 1, 2, 2]
    assert simulator.ranges.has("more:linear")


def test_a_branch_that_evaluation_alone_takes_stays_in_floating_point_in_its_graph():
    torch.manual_seed(0)
    network, simulator = Detour().train(), simulator_of()
    compiler, graphs = counting()
    simulation, forward = CompiledSimulation(simulator, network, compiler), type(network).forward.__get__(network)
    for batch in batches(3):
        with simulator.observing():
            simulation.run(forward, (batch,), {})
        simulator.finish_batch()
    network.eval()
    network.takes_more, (batch,) = True, batches(1)
    with torch.no_grad(), pytest.warns(UserWarning, match="the range of 'more:linear'"):
        expected = simulation.run(forward, (batch,), {})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(simulation.run(forward, (batch,), {}), expected)
    assert len(graphs) == 2


def test_learned_steps_get_the_same_gradients_from_a_compiled_graph():
    torch.manual_seed(0)
    settings = {"weight": LearnedStep(bits=4), "activation": LearnedStepAffine()}
    plain = ResidualNet(widths=(4,)).train()
    twin, python, compiled = copy.deepcopy(plain), simulator_of(**settings), simulator_of(**settings)
    compiler, graphs = counting()
    simulation = CompiledSimulation(compiled, twin, compiler)
    expected = train(plain, partial(python.run, plain), python)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = train(twin, simulation.run, compiled)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert torch.equal(python.learned.trained, compiled.learned.trained)
    assert graphs


def test_quantizers_that_hold_tensors_are_simulated_in_python_and_say_so():
    network, simulator = ResidualNet(widths=(4,)).train(), simulator_of(weight=TrainedTernary())
    compiler, graphs = counting()
    with pytest.warns(UserWarning, match="TrainedTernary cannot be part of a graph"):
        simulation = CompiledSimulation(simulator, network, compiler)
    train(network, simulation.run, simulator)
    assert not graphs


def test_histograms_are_counted_in_python_and_the_rest_is_compiled():
    network, simulator = ResidualNet(widths=(4, 8)).train(), simulator_of(observer=Entropy())
    compiler, graphs = counting("eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(network, CompiledSimulation(simulator, network, compiler).run, simulator)
    assert len(graphs) == 1  # the pass in evaluation, after the observer


class Masked(nn.Module):
    """Scores to which a bias and a mask are added, and a temperature behind them."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.bias = nn.Linear(12, 12), nn.Linear(12, 5), nn.Parameter(torch.randn(12))

    def forward(self, x, *, hidden):
        scores = self.first(x) + (self.bias + torch.zeros(4, 12).masked_fill(hidden, -1e9))
        return self.second((scores / 1.5).softmax(-1))


def test_a_mask_that_comes_later_is_kept_in_float_by_a_compiled_network_too():
    torch.manual_seed(0)
    network, seen = Masked(), []
    forward, x = type(network).forward.__get__(network), torch.randn(4, 12)
    for compiler in (None, counting()[0]):
        simulator = simulator_of()
        simulation, outputs = CompiledSimulation(simulator, network, compiler), []
        for step in range(8):
            hidden = (torch.arange(12) > 8).expand(4, 12) & (step > 4)
            with simulator.observing(), warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                outputs.append(simulation.run(forward, (x,), {"hidden": hidden}).detach())
                simulator.finish_batch()
            assert sum("holds a mask's huge numbers" in str(each.message) for each in told) == 2 * (step == 5)
        assert simulator.plan.masked == {":add", ":add[first]"}
        seen.append(outputs)
    assert all(map(torch.equal, *seen))
