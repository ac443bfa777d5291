"""Groups of small networks, worked out by hand."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.coupling import Group, Member, keep_channels
from lightning_optim.graph.rules.base import all_rules


class Lambda(nn.Module):
    """Two layers with anything in between."""

    def __init__(self, one, between, two):
        super().__init__()
        self.one, self.between, self.two = one, between, two

    def forward(self, x):
        return self.two(self.between(self.one(x)))


def places(net, *inputs):
    coupling = couple(capture_network(net, inputs))
    return {frozenset((member.name, member.dim) for member in group.members): group for group in coupling.groups}


def test_what_reaches_an_output_is_frozen():
    assert places(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.randn(2, 3, 4, 4)) == {}


def test_a_residual_stream_is_one_group():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.block(x))

    (found,) = places(Net(), torch.randn(2, 3))
    names = {"stem.weight", "stem.bias", "block.weight", "block.bias"}
    assert found == {(name, 0) for name in names} | {("block.weight", 1), ("head.weight", 1)}


def test_flatten_repeats_a_channel_over_its_pixels():
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 2))
    ((_, group),) = places(net, torch.randn(2, 3, 4, 4)).items()
    reader = next(member for member in group.members if member.dim == 1)
    assert torch.equal(reader.index, torch.arange(36).view(4, 9))


def test_an_operator_without_a_rule_freezes_what_it_meets():
    net = Lambda(nn.Linear(3, 4), lambda x: torch.linalg.qr(x)[0], nn.Linear(2, 2))
    net.two = nn.Linear(2, 2)
    coupling = couple(capture_network(net, (torch.randn(2, 3),)))
    assert coupling.groups == ()
    assert coupling.unknown == {"linalg_qr": 1}


def test_positions_moved_along_channels_freeze_them():
    for between in (lambda x: x.roll(1, 1), lambda x: F.pad(x, (0, 1))[:, :4], lambda x: x[:, [1, 0, 2, 3]]):
        assert places(Lambda(nn.Linear(3, 4), between, nn.Linear(4, 2)), torch.randn(2, 3)) == {}


def test_a_softmax_over_channels_freezes_them():
    assert places(Lambda(nn.Linear(3, 4), lambda x: x.softmax(1), nn.Linear(4, 2)), torch.randn(2, 3)) == {}


def test_a_fixed_vector_added_to_channels_freezes_them():
    fixed = torch.arange(4.0)
    assert places(Lambda(nn.Linear(3, 4), lambda x: x + fixed, nn.Linear(4, 2)), torch.randn(2, 3)) == {}


def test_a_statistic_over_channels_is_noted():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    ((_, group),) = places(net, torch.randn(2, 3)).items()
    assert group.is_normalized


def test_heads_go_whole_and_their_number_is_known():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.qkv, self.out = 2, nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, 4)).permute(2, 0, 3, 1, 4)
            return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    coupling = couple(capture_network(Attention(), (torch.randn(2, 5, 8),)))
    (group,) = coupling.groups
    assert group.size == 2
    assert [count.name for count in group.counts] == ["num_heads"]
    assert coupling.group_of("qkv.weight") is group
    assert keep_channels([(group, torch.tensor([1]))])["num_heads"][0][1].tolist() == [1]


def test_queries_of_one_shared_key_head_go_with_it():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)
            self.out = nn.Linear(16, 8)

        def forward(self, x):
            query, key, value = (
                layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
            return self.out(mixed.transpose(1, 2).flatten(2))

    (group,) = couple(capture_network(Grouped(), (torch.randn(2, 5, 8),))).groups
    assert group.size == 2
    assert {member.name: member.index.shape[1] for member in group.members if member.dim == 0} == {
        "query.weight": 8, "query.bias": 8, "key.weight": 4, "key.bias": 4, "value.weight": 4, "value.bias": 4,
    }  # fmt: skip


def test_learned_keys_stay_since_each_takes_part_in_the_softmax():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys, self.values = nn.Parameter(torch.randn(1, 6, 3)), nn.Parameter(torch.randn(1, 6, 3))

        def forward(self, x):
            return F.scaled_dot_product_attention(x, self.keys, self.values)

    assert places(Memory(), torch.randn(1, 5, 3)) == {}


def test_two_groups_on_one_axis_are_kept_apart():
    left, right = (
        Group(2, (Member("w", 1, torch.tensor([[0], [1]]), 4),)),
        Group(2, (Member("w", 1, torch.tensor([[2], [3]]), 4),)),
    )
    plan = keep_channels([(left, torch.tensor([1])), (right, torch.tensor([0]))])
    assert plan["w"][0][1].tolist() == [1, 2]


def test_channels_are_found_under_every_name_of_a_tied_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
            self.enter = nn.Linear(3, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.out(self.two(self.one(self.enter(x)).relu()))

    (group,) = couple(capture_network(Tied(), (torch.randn(2, 3),))).groups
    assert {member.dim for member in group.members if member.name in ("one.weight", "two.weight")} == {0, 1}


def test_reading_a_type_or_a_shape_freezes_nothing():
    def between(x):
        torch.ops.aten._assert_tensor_metadata(x, dtype=torch.float32)
        mask = x.new_zeros(x.shape[0], 1)
        return x.clone() + mask

    ((_, group),) = places(Lambda(nn.Linear(3, 4), between, nn.Linear(4, 2)), torch.randn(2, 3)).items()
    assert group.size == 4


def test_zeros_written_in_place_leave_channels_tied_to_their_counterparts():
    class Keyless(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias, self.out = nn.Linear(3, 8), nn.Parameter(torch.randn(8)), nn.Linear(4, 2)

        def forward(self, x):
            bias = self.bias.clone()
            bias[4:8].zero_()
            left, right = (self.weight(x) + bias).chunk(2, -1)
            return self.out(left + right)

    ((_, group),) = places(Keyless(), torch.randn(2, 3)).items()
    assert group.size == 4
    assert next(member for member in group.members if member.name == "bias").index.tolist() == [
        [0, 4], [1, 5], [2, 6], [3, 7],
    ]  # fmt: skip


def test_a_standardized_weight_takes_a_statistic_over_its_inputs():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Standardized(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    groups = {group.name: group for group in couple(capture_network(net, (torch.randn(2, 3, 8, 8),))).groups}
    assert groups["0.weight"].is_normalized
    assert not groups["2.weight"].is_normalized
    assert (groups["0.weight"].size, groups["2.weight"].size) == (4, 6)


def test_a_rule_that_fails_or_answers_wrongly_freezes_what_it_met(monkeypatch):
    def failing(call):
        raise KeyError("unforeseen")

    net = Lambda(nn.Linear(3, 4), torch.tanh, nn.Linear(4, 2))
    captured = capture_network(net, (torch.randn(2, 3),))
    assert len(couple(captured).groups) == 1
    for wrong in (failing, lambda call: [None], lambda call: [None, call.labels.fresh(7)]):
        monkeypatch.setitem(all_rules(), "tanh", wrong)
        coupling = couple(captured)
        assert coupling.groups == ()
        assert coupling.unknown == {"tanh": 1}


def test_heads_of_packed_queries_keys_and_values_are_apart_from_the_width_of_their_input():
    layer = nn.MultiheadAttention(12, 3, batch_first=True)

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.attention, self.leave = nn.Linear(3, 12), layer, nn.Linear(12, 2)

        def forward(self, x):
            x = self.enter(x)
            return self.leave(self.attention(x, x, x, need_weights=False)[0])

    for examples in (1, 2):
        coupling = couple(capture_network(Attend(), (torch.randn(examples, 5, 3),)))
        heads = coupling.group_of("attention.out_proj.weight", 1)
        assert heads.size == 3
        assert {count.name for count in heads.counts} == {"attention.num_heads"}
        packed = next(member for member in heads.members if member.name == "attention.in_proj_weight")
        assert torch.equal(packed.index, torch.arange(36).view(3, 3, 4).transpose(0, 1).flatten(1))
        assert coupling.group_of("enter.weight").size == coupling.group_of("leave.weight", 1).size == 12


def test_a_token_that_only_training_reads_goes_with_its_stream():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.enter, self.leave = nn.Parameter(torch.randn(1, 4)), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.enter(x)
            return self.leave(torch.where(torch.rand_like(x[:, :1]) < 0.5, self.token, x) if self.training else x)

    ((_, group),) = places(Masked(), torch.randn(2, 3)).items()
    assert next(member for member in group.members if member.name == "token").dim == 1


def test_a_parameter_that_nothing_reads_stays():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare, self.one, self.two = nn.Parameter(torch.randn(7)), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.two(self.one(x).relu())

    assert [place for group in places(Spare(), torch.randn(2, 3)) for place in group if place[0] == "spare"] == []


def test_a_weight_given_by_direction_and_length_is_cut_with_both():
    net = nn.Sequential(nn.Linear(3, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Linear(4, 2))
    coupling = couple(capture_network(net, (torch.randn(2, 3),)))
    groups = {frozenset((member.name, member.dim) for member in group.members): group for group in coupling.groups}
    inputs = {("0.weight", 0), ("0.bias", 0), ("1.parametrizations.weight.original1", 1)}
    assert groups[frozenset(inputs)].is_normalized
    outputs = {("1.parametrizations.weight.original0", 0), ("1.parametrizations.weight.original1", 0), ("1.bias", 0)}
    assert not groups[frozenset(outputs | {("2.weight", 1)})].is_normalized
