"""Cuts that a module's code cannot follow are found, and tied or left out."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.shape_model import ShapeModel
from lightning_optim.pruning import shrink_channels


class Derived(nn.Module):
    """Attention whose heads are as wide as the input says, as in window transformers."""

    def __init__(self, width=12, num_heads=3):
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(num_heads, 5, 5))

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = (qkv[0] * self.scale @ qkv[1].transpose(-2, -1) + self.bias).softmax(-1) @ qkv[2]
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Written(nn.Module):
    """A head's width is an attribute; its output is as wide as it happens to be."""

    def __init__(self):
        super().__init__()
        self.width, self.qkv, self.out = 4, nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, -1, self.width)).permute(2, 0, 3, 1, 4).unbind()
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def around(attention):
    return nn.Sequential(nn.Linear(3, 12), attention, nn.LayerNorm(12), nn.Linear(12, 2)), torch.randn(2, 5, 3)


def test_heads_derived_from_a_width_are_tied_to_it():
    net, batch = around(Derived())
    group, after = couple(capture_network(net, (batch,))).groups
    assert (group.size, after.size) == (3, 12)
    enter = next(member for member in group.members if (member.name, member.dim) == ("0.weight", 0))
    assert torch.equal(enter.index, torch.arange(12).view(3, 4))
    bias = next(member for member in group.members if member.name == "1.bias")
    assert (bias.dim, bias.index.shape) == (0, (3, 1))
    assert [count.name for count in group.counts] == ["1.num_heads"]


def test_what_is_tied_can_be_cut_to_any_number_of_heads():
    torch.manual_seed(0)
    for kept in ([1], [0, 2]):
        net, batch = around(Derived())
        coupling = couple(capture_network(net, (batch,)))
        done = shrink_channels(net, coupling, [(coupling.groups[0], torch.tensor(kept))], (batch,))
        assert not done.refused
        assert done.error <= 1e-5
        assert (net[0].out_features, net[1].num_heads) == (4 * len(kept), len(kept))


def test_heads_of_a_written_width_stay_apart_from_their_input():
    net, batch = around(Written())
    assert sorted(group.size for group in couple(capture_network(net, (batch,))).groups) == [3, 12, 12]


def test_a_width_goes_where_heads_are_written_in_a_shape():
    class Shaped(Written):
        def __init__(self):
            super().__init__()
            self.shape, self.bias = (3, 1, 1), nn.Parameter(torch.randn(3))

        def forward(self, x):
            query, key, value = self.qkv(x).unflatten(-1, (3, -1, self.width)).permute(2, 0, 3, 1, 4).unbind()
            bias = self.bias.view(self.shape)
            return self.out((query @ key.transpose(-2, -1) + bias).softmax(-1).matmul(value).transpose(1, 2).flatten(2))

    net, batch = around(Shaped())
    coupling = couple(capture_network(net, (batch,)))
    assert [group.name for group in coupling.groups] == ["0.weight", "1.out.weight"]
    assert list(coupling.whole) == ["1.bias"]


def test_a_perceptron_as_wide_as_merged_patches_is_not_tied_to_them():
    class Merging(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.widen, self.narrow = Derived(), nn.Linear(12, 48), nn.Linear(48, 12)
            self.merge = nn.Linear(48, 6)

        def forward(self, x):
            x = x + self.attention(x)
            x = x + self.narrow(self.widen(x).relu())
            return self.merge(torch.cat([x, x.roll(1, 1), x.roll(2, 1), x.roll(3, 1)], -1))

    net = nn.Sequential(nn.Linear(3, 12), Merging(), nn.Linear(6, 2))
    coupling = couple(capture_network(net, (torch.randn(2, 5, 3),)))
    assert sorted(group.size for group in coupling.groups) == [3, 6, 48]


def test_a_layer_whose_output_is_shaped_as_its_input_is_tied_to_it():
    class Reduced(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce, self.leave = nn.Conv1d(6, 6, 2, stride=2), nn.Linear(6, 6)

        def forward(self, x):
            batch, _, width = x.shape
            return self.leave(self.reduce(x.transpose(1, 2)).reshape(batch, width, -1).transpose(1, 2))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), Reduced(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    batch = torch.randn(2, 4, 3)
    coupling = couple(capture_network(net, (batch,)))
    assert not coupling.whole
    assert [group.name for group in coupling.groups] == ["0.weight", "1.leave.weight", "2.weight"]
    done = shrink_channels(net, coupling, [(coupling.groups[0], torch.tensor([0, 2, 5]))], (batch,))
    assert not done.refused
    assert net[1].reduce.weight.shape == (3, 3, 2)


def test_groups_that_the_code_cannot_lose_are_named_and_the_others_stay():
    class Baked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

        def forward(self, x):
            for place, layer in enumerate(self.layers):
                x = layer(x).relu()
                x = x.reshape(2, 6) if place in (1, 3) else x
            return x

    coupling = couple(capture_network(Baked(), (torch.randn(2, 6),)))
    assert sorted(coupling.whole) == ["layers.1.weight", "layers.3.weight"]
    assert all("invalid for input of size" in reason for reason in coupling.whole.values())
    assert [group.name for group in coupling.groups] == ["layers.0.weight", "layers.2.weight", "layers.4.weight"]


def test_code_that_only_training_runs_is_heard():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.zeros(4) if self.training else x

    net = nn.Sequential(nn.Linear(3, 4), Noisy(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    coupling = couple(capture_network(net, (torch.randn(2, 3),)))
    assert list(coupling.whole) == ["0.weight"]
    assert [group.name for group in coupling.groups] == ["2.weight"]


def test_nothing_is_held_against_code_that_needs_numbers():
    class Branch(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    shape_model = ShapeModel(nn.Sequential(nn.Linear(3, 4), Branch()), (torch.randn(2, 3),), {})
    assert shape_model.objection({"0.weight": [(0, torch.tensor([0]))]}) is None


def test_a_shape_model_leaves_model_and_random_numbers_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    shape_model = ShapeModel(net, (torch.ones(2, 3),), {})
    assert shape_model.objection_in_training({"0.weight": [(0, torch.tensor([0, 1]))]}) is not None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training


def test_a_shape_model_follows_code_that_makes_tensors_of_its_own():
    class Positions(nn.Module):
        def forward(self, x):
            return x + torch.arange(5.0)[:, None]

    captured = capture_network(nn.Sequential(nn.Linear(3, 4), Positions(), nn.Linear(4, 2)), (torch.randn(2, 5, 3),))
    assert captured.shape_model.objection({"2.weight": [(1, torch.tensor([0]))]}) is not None
