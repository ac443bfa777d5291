"""Optimizers and averaged copies after a cut."""

import copy

import pytest
import torch
from torch import nn

from lightning_optim.errors import ShrinkError
from lightning_optim.surgery import apply_cut
from lightning_optim.surgery.rebind import rebind_module, rebind_optimizer

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


def test_an_averaged_copy_is_cut_alike():
    net, _ = trained(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    average = torch.optim.swa_utils.AveragedModel(net)
    apply_cut(net, PLAN)
    rebind_module(average.module, PLAN)
    average.update_parameters(net)
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in net.parameters()]
