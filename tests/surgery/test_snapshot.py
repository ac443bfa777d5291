import copy

import pytest
import torch
from torch import nn

from lightning_optim.surgery import apply_cut
from lightning_optim.surgery.rebind import rebind_optimizer
from lightning_optim.surgery.snapshot import Snapshot
from support import same


def trained(steps=3, optimizer=torch.optim.AdamW):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = optimizer(net.parameters(), lr=0.1)
    train(net, optimizer, steps)
    return net, optimizer


def train(net, optimizer, steps):
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 3, generator=generator)).pow(2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9)]
)
def test_training_from_what_was_put_back_is_training_from_then(optimizer):
    net, optimizer = trained(optimizer=optimizer)
    parameters, snapshot = list(net.parameters()), Snapshot()
    snapshot.take(net, [optimizer])
    train(net, optimizer, 5)
    straight = copy.deepcopy(net.state_dict())
    train(net, optimizer, 2)
    snapshot.put_back(net, [optimizer])
    train(net, optimizer, 5)
    assert same(straight, net.state_dict())
    assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))


def test_what_is_put_back_twice_is_the_same_twice():
    net, optimizer = trained()
    snapshot = Snapshot()
    snapshot.take(net, [optimizer])
    ends = []
    for _ in range(2):
        snapshot.put_back(net, [optimizer])
        train(net, optimizer, 4)
        ends.append(copy.deepcopy(net.state_dict()))
    assert same(*ends)


def test_before_the_first_step_there_are_no_moments():
    net, optimizer = trained(steps=0)
    snapshot = Snapshot()
    snapshot.take(net, [optimizer])
    train(net, optimizer, 2)
    snapshot.put_back(net, [optimizer])
    assert not any(optimizer.state.get(parameter) for parameter in net.parameters())


def test_it_goes_through_a_file_of_plain_tensors(tmp_path):
    net, optimizer = trained()
    snapshot, other = Snapshot(), Snapshot()
    snapshot.take(net, [optimizer], [copy.deepcopy(net)])
    torch.save(snapshot.state_dict(), tmp_path / "snapshot.pt")
    other.load_state_dict(torch.load(tmp_path / "snapshot.pt", weights_only=True))
    expected = copy.deepcopy(net.state_dict())
    average = copy.deepcopy(net)
    train(net, optimizer, 2)
    average[0].weight.data.zero_()
    other.put_back(net, [optimizer], [average])
    assert same(expected, net.state_dict())
    assert same(expected, average.state_dict())


def test_it_follows_a_cut():
    net, optimizer = trained()
    average = copy.deepcopy(net)
    snapshot, kept = Snapshot(), torch.tensor([0, 3])
    snapshot.take(net, [optimizer], [average])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    moment = optimizer.state[net[0].weight]["exp_avg"].clone()
    train(net, optimizer, 2)
    plan = {
        name: [(0, kept)] for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    }
    plan["3.weight"] = [(1, kept)]
    rebind_optimizer(optimizer, apply_cut(net, plan))
    apply_cut(average, plan)
    snapshot.cut(plan, "")
    snapshot.put_back(net, [optimizer], [average])
    assert torch.equal(net[0].weight, before["0.weight"][kept])
    assert torch.equal(average[3].weight, before["3.weight"][:, kept])
    assert torch.equal(net[1].running_var, before["1.running_var"][kept])
    assert torch.equal(optimizer.state[net[0].weight]["exp_avg"], moment[kept])
    assert int(optimizer.state[net[0].weight]["step"]) == 3
    train(net, optimizer, 1)
