"""The law: an operator's name does not depend on what else ran in the pass."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.quantization import Affine, MinMax, Symmetric
from lightning_optim.quantization.simulation.operator_names import OperatorNames
from lightning_optim.quantization.simulation.plan import Plan
from lightning_optim.quantization.simulation.simulator import Simulator


class Net(nn.Module):
    """Runs a function with its layers; ``skip`` holds what the function is to leave out."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function, self.skip = function, ()
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def linears(count=3):
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(count))


def layer_drop(net, x):
    for place, block in enumerate(net.blocks):
        if place not in net.skip:
            x = x + F.gelu(block(x)) * 2.0**place
    return net.head(x.mean(0))


def shared_module(net, x):
    for place, block in enumerate(net.blocks):
        if place not in net.skip:
            x = net.act(block(x)) * 2.0 + x
    return net.head(x)


def shared_head(net, x):
    outputs = []
    for block in net.blocks:
        x = block(x)
        outputs.append(x)
    return torch.stack([net.head(each) * 1.0 for place, each in enumerate(outputs) if place not in net.skip])


def experts(net, x):
    y = torch.zeros_like(x)
    for gate, block in enumerate(net.blocks):
        if gate not in net.skip:
            y = y + block(x) * gate
    return y


def branches(net, x):
    return net.head(x + (net.blocks[0](x) if 0 in net.skip else 100.0 * net.blocks[1](x)))


def names_of(net, simulator, x, skip):
    net.skip = skip
    with simulator.observing():
        simulator.run(net, net.forward, (x,), {})
    record, simulator._record = simulator._record, None
    keys = {key: operator.path for key, (operator, _) in record.operators.items()}
    simulator.plan = simulator.plan or Plan(sources=record.sources)
    return keys


@pytest.mark.parametrize("function", [layer_drop, shared_module, shared_head, experts])
def test_what_a_pass_skips_renames_nothing_that_it_runs(function):
    torch.manual_seed(0)
    net, x = Net(function, blocks=linears(), act=nn.GELU(), head=nn.Linear(4, 2)), torch.randn(5, 4)
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    whole = names_of(net, simulator, x, ())
    for skip in [*itertools.combinations(range(3), 1), *itertools.combinations(range(3), 2)]:
        seen = names_of(net, simulator, x, skip)
        # What joins the blocks is named by the last of them that ran.
        joins = {key for key in seen if "mean[" in key or "stack[" in key}
        assert seen.keys() - joins <= whole.keys(), skip


def test_sums_of_branches_that_exclude_each_other_have_names_of_their_own():
    net, x = Net(branches, blocks=linears(), head=nn.Linear(4, 2)), torch.randn(5, 4)
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    one, other = (names_of(net, simulator, x, skip) for skip in ((0,), ()))
    assert ":add[blocks.0]" in one.keys() - other.keys()
    assert ":add[blocks.1]" in other.keys() - one.keys()


def test_a_module_under_two_names_is_one_module_with_two_calls():
    act = nn.GELU()
    net, x = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act), torch.randn(2, 4)
    simulator = Simulator(Symmetric(), Affine(), MinMax())
    with simulator.observing():
        simulator.run(net, net.forward, (x,), {})
        simulator.finish_batch()
    paths = {key: operator.path for key, operator in simulator.plan.operators.items()}
    assert paths == {"0:linear": "0", "1:gelu": "1", "2:linear": "2", "1#2:gelu": "1"}
    assert simulator.plan.sources == {"1": ["0", "2"]}


def test_a_module_that_two_callers_share_is_named_by_each():
    class Block(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), act

        def forward(self, x):
            return self.act(self.layer(x))

    act = nn.GELU()
    net, simulator = nn.Sequential(Block(act), Block(act)), Simulator(Symmetric(), Affine(), MinMax())
    with simulator.observing():
        simulator.run(net, net.forward, (torch.randn(2, 4),), {})
        simulator.finish_batch()
    paths = {key: operator.path for key, operator in simulator.plan.operators.items()}
    assert paths == {
        "0.layer:linear": "0.layer",
        "0.act:gelu": "0.act",
        "1.layer:linear": "1.layer",
        "1.act:gelu": "0.act",
    }
    assert not simulator.plan.sources


def called(names, name, *sources):
    names.begin(name, name)
    _, source = names.name("gelu", sources)
    key = names.name("relu", ())[0]
    names.end()
    return key, source


def test_calls_of_a_module_are_numbered_by_their_sources_as_they_are_met():
    sources = {}
    names = OperatorNames(sources, grows=True)
    found = {}
    for block in ("a", "b", "c"):
        _, made = called(names, block)
        found[block] = called(names, "norm", made)[0]
    assert found == {"a": "norm:relu", "b": "norm#2:relu", "c": "norm#3:relu"}
    assert sources == {"norm": ["a", "b", "c"]}
    later = OperatorNames(sources)
    _, made = called(later, "c")
    assert called(later, "norm", made)[0] == found["c"]
    _, made = called(later, "d")
    assert called(later, "norm", made)[0] == "norm[d]:relu"


def test_a_call_in_which_nothing_runs_counts_for_nothing():
    names = OperatorNames({}, grows=True)
    for _ in range(2):
        names.begin("identity", "identity")
        names.end()
    assert called(names, "identity")[0] == "identity:relu"


def test_what_an_unknown_module_runs_its_caller_runs():
    names = OperatorNames({})
    names.begin_unknown()
    assert names.name("add", ())[0] == ":add"
    names.end()
    assert names.name("add", ())[0] == ":add#2"
