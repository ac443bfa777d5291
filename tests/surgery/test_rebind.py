"""Optimizers and averaged copies after a cut."""

import copy

import pytest
import torch
from torch import nn

from lightning_optim.errors import ShrinkError
from lightning_optim.surgery import apply_cut
from lightning_optim.surgery.rebind import check_cut, check_optimizer, rebind_module, rebind_optimizer

KEPT = torch.tensor([0, 2])
PLAN = {"0.weight": [(0, KEPT)], "0.bias": [(0, KEPT)], "2.weight": [(1, KEPT)]}


def trained(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = make(net.parameters())
    for _ in range(3):
        step(net, optimizer)
    return net, optimizer


def step(net, optimizer):
    optimizer.zero_grad()
    net(torch.ones(2, 3) * torch.tensor([[1.0], [-1.0]])).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, centered=True),
    ],
    ids=["adamw", "sgd", "rmsprop"],
)
def test_training_goes_on_as_if_the_removed_channels_were_masked(make):
    net, optimizer = trained(make)
    full, full_optimizer = copy.deepcopy((net, optimizer))
    rebind_optimizer(optimizer, apply_cut(net, PLAN))
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.parameters()}
    assert set(optimizer.state) == set(net.parameters())
    gone = [1, 3]
    with torch.no_grad():
        full[0].weight[gone], full[0].bias[gone], full[2].weight[:, gone] = 0, 0, 0
    for _ in range(3):
        step(net, optimizer)
        step(full, full_optimizer)
        with torch.no_grad():
            full[0].weight[gone], full[0].bias[gone], full[2].weight[:, gone] = 0, 0, 0
    torch.testing.assert_close(net[0].weight, full[0].weight[KEPT])
    torch.testing.assert_close(net[2].weight, full[2].weight[:, KEPT])


def test_moments_are_cut_and_counters_go_on():
    net, optimizer = trained(torch.optim.AdamW)
    moment = optimizer.state[net[2].weight]["exp_avg"].clone()
    rebind_optimizer(optimizer, apply_cut(net, PLAN))
    state = optimizer.state[net[2].weight]
    assert torch.equal(state["exp_avg"], moment[:, KEPT])
    assert int(state["step"]) == 3


def test_one_moment_per_row_is_cut_where_it_has_rows():
    net, optimizer = trained(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    rows = torch.randn(4, 1)
    optimizer.state[net[0].weight]["row"] = rows
    optimizer.state[net[2].weight]["row"] = torch.randn(2, 1)
    rebind_optimizer(optimizer, apply_cut(net, PLAN))
    assert torch.equal(optimizer.state[net[0].weight]["row"], rows[KEPT])
    assert optimizer.state[net[2].weight]["row"].shape == (2, 1)


@pytest.mark.parametrize("state", [torch.randn(12), [torch.randn(2)]], ids=["flat", "list"])
def test_a_state_that_cannot_be_cut_is_refused_before_anything_changes(state):
    net, optimizer = trained(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    optimizer.state[net[0].weight]["history"] = state
    before = list(optimizer.param_groups[0]["params"])
    with pytest.raises(ShrinkError, match="'history'"):
        rebind_optimizer(optimizer, apply_cut(net, PLAN))
    assert all(one is other for one, other in zip(optimizer.param_groups[0]["params"], before, strict=True))


class Preconditioned(torch.optim.Optimizer):
    """An optimizer with a state of another shape, which it makes in its first step."""

    def __init__(self, parameters, make):
        super().__init__(parameters, {"lr": 0.1})
        self.make = make

    def __setstate__(self, state):
        super().__setstate__(state)
        self.make = state["param_groups"][0]["make"]

    def step(self, closure=None):
        closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["factors"] = group["make"](parameter)


def preconditioned(parameters, make):
    return Preconditioned([{"params": list(parameters), "make": make}], make)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.LBFGS,
        lambda parameters: preconditioned(parameters, lambda p: torch.eye(p.shape[0])),
        lambda parameters: preconditioned(parameters, lambda p: [torch.eye(size) for size in p.shape]),
    ],
    ids=["lbfgs", "tensor", "list"],
)
def test_an_optimizer_that_cannot_follow_is_known_before_its_first_step(make):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer, before = make(net.parameters()), copy.deepcopy(net.state_dict())
    with pytest.raises(ShrinkError, match=r"cut.*; train with another optimizer, or mask"):
        check_optimizer(optimizer, net.parameters())
    assert not optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    check_optimizer(optimizer, nn.Linear(3, 4).parameters())  # trains none of these


def every_optimizer():
    kinds = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    others = (torch.optim.Optimizer, torch.optim.LBFGS)
    return sorted((kind for kind in kinds if issubclass(kind, torch.optim.Optimizer) and kind not in others), key=repr)


@pytest.mark.parametrize("kind", every_optimizer(), ids=lambda kind: kind.__name__)
def test_every_other_optimizer_of_torch_passes_before_and_after_its_first_step(kind):
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))  # Muon wants matrices
    optimizer = kind(net.parameters(), lr=0.01)
    before = {parameter: list(state) for parameter, state in optimizer.state.items()}  # Adagrad has one already
    check_optimizer(optimizer, net.parameters())
    assert {parameter: list(state) for parameter, state in optimizer.state.items()} == before
    assert all(parameter.grad is None for parameter in net.parameters())
    if kind is not torch.optim.SparseAdam:
        step(net, optimizer)
    check_optimizer(optimizer, net.parameters())
    check_cut(optimizer, net.parameters())


def test_an_averaged_copy_is_cut_alike():
    net, _ = trained(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    average = torch.optim.swa_utils.AveragedModel(net)
    apply_cut(net, PLAN)
    rebind_module(average.module, PLAN)
    average.update_parameters(net)
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in net.parameters()]
