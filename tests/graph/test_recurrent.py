"""Units of recurrent layers: what they are tied to, and when they stay."""

import pytest
import torch
from torch import nn

from lightning_optim.graph import capture_network, couple
from lightning_optim.pruning import shrink_channels


class Net(nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        self.enter, self.layers, self.leave = nn.Linear(3, 5), layers, nn.Linear(width, 2)

    def forward(self, x, *states):
        return self.leave(self.layers(self.enter(x), *states)[0])


def groups_of(net, *inputs):
    coupling = couple(capture_network(net, inputs))
    assert not coupling.unknown
    return {group.name: group for group in coupling.groups}


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_unit_goes_with_its_gates_in_every_layer_and_direction(kind, gates):
    net = Net(kind(5, 4, num_layers=2, bidirectional=True), 8)
    found = groups_of(net, torch.randn(6, 2, 3))
    assert {name: group.size for name, group in found.items()} == {"enter.weight": 5, "layers.weight_ih_l0": 4}
    members = {(member.name, member.dim): member.index for member in found["layers.weight_ih_l0"].members}
    for layer in ("l0", "l0_reverse", "l1", "l1_reverse"):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            assert torch.equal(members[f"layers.{name}_{layer}", 0], torch.arange(4 * gates).view(gates, 4).T)
        assert torch.equal(members[f"layers.weight_hh_{layer}", 1], torch.arange(4)[:, None])
    for reader in ("layers.weight_ih_l1", "layers.weight_ih_l1_reverse", "leave.weight"):
        assert torch.equal(members[reader, 1], torch.arange(8).view(2, 4).T)


def test_a_state_from_outside_keeps_its_units():
    assert [*groups_of(Net(nn.GRU(5, 4), 4), torch.randn(6, 2, 3), torch.randn(1, 2, 4))] == ["enter.weight"]


def test_projected_states_stay():
    assert groups_of(Net(nn.LSTM(5, 4, proj_size=3), 3), torch.randn(6, 2, 3)) == {}


def test_steps_that_are_pooled_leave_units_free():
    class Last(Net):
        def forward(self, x):
            return self.leave(self.layers(self.enter(x))[1][-1])

    assert len(groups_of(Last(nn.GRU(5, 4, num_layers=2), 4), torch.randn(6, 2, 3))) == 2


def test_a_cut_layer_knows_its_shape_and_is_trained():
    torch.manual_seed(0)
    net, batch = Net(nn.LSTM(5, 4, num_layers=2), 4), torch.randn(6, 2, 3)
    coupling = couple(capture_network(net, (batch,)))
    shrink_channels(net, coupling, [(group, torch.tensor([0, 2])) for group in coupling.groups], (batch,))
    assert (net.layers.input_size, net.layers.hidden_size) == (2, 2)
    before = net(batch)
    optimizer = torch.optim.SGD(net.layers.parameters(), lr=1.0)
    before.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    optimizer.step()
    assert not torch.equal(net(batch), before)
