"""Shrunk networks equal the network whose channels are zeroed by hand, over a zoo of structures."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.errors import ShrinkError
from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.coupling import Group, Member
from lightning_optim.pruning import shrink_channels


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.one, self.norm1 = nn.Conv2d(width, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.two, self.norm2 = nn.Conv2d(6, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))
        return self.head(x.mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce, self.spatial, self.widen = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 3, stride=2, padding=1),
            nn.Conv2d(6, 12, 1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(3, 12, 1, stride=2), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        y = self.widen(F.relu(self.spatial(F.relu(self.reduce(x)))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(y + self.shortcut(x)), 1), 1))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(9)
        self.two, self.three = nn.Conv2d(9, 5, 3, padding=1), nn.Conv2d(14, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.cat([x, self.one(x)], 1)
        x = torch.cat([x, self.two(F.relu(self.norm(x)))], 1)
        return self.head(F.relu(self.three(x)).mean((2, 3)))


class Shuffle(nn.Module):
    """A split, a branch, a join and a channel shuffle."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last, self.head = nn.Conv2d(12, 6, 1), nn.Linear(6, 2)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)
        return self.head(self.last(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = F.silu(self.norm(self.stem(x)))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x).mean((2, 3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.enter = nn.Linear(3, 6)
        self.again.weight = self.first.weight

    def forward(self, x):
        return self.out(F.relu(self.again(F.relu(self.first(F.relu(self.enter(x)))))))


class Attention(nn.Module):
    def __init__(self, dim=12, num_heads=3, fused=True):
        super().__init__()
        self.num_heads, self.head_dim, self.fused = num_heads, dim // num_heads, fused
        self.query, self.keys, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        key, value = (
            part.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
            for part in self.keys(x).chunk(2, -1)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(12), Attention(fused=fused), nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, fused=True):
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.blocks, self.norm = nn.Sequential(Block(fused), Block(fused)), nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Recurrent(nn.Module):
    """Columns of an image, one after the other."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.enter = nn.Linear(24, 6)
        self.layers = kind(6, 4, batch_first=True, **settings)
        self.leave = nn.Linear(4 * (1 + self.layers.bidirectional), 3)

    def forward(self, x):
        return self.leave(self.layers(torch.tanh(self.enter(x.flatten(1, 2).transpose(1, 2))))[0])


class Gated(nn.Module):
    """A gate from the second half of the channels, and a product of two chunks."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        left, right = self.two(F.glu(self.one(x), 1)).chunk(2, 1)
        return self.head(left * F.silu(right)).mean((2, 3))


class Rotary(nn.Module):
    """Rotated queries and keys, and a word matrix that is also the head."""

    def __init__(self, dim=12, num_heads=3):
        super().__init__()
        self.num_heads, self.enter = num_heads, nn.Conv2d(3, dim, 8, 4, 2)
        self.qkv, self.out, self.word = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Embedding(5, dim)
        self.head = nn.Linear(dim, 5, bias=False)
        self.head.weight = self.word.weight
        self.register_buffer("angle", torch.randn(4, dim // num_heads // 2))

    def rotate(self, x):
        one, two = x.chunk(2, -1)
        angle = torch.cat([self.angle, self.angle], -1)
        return x * angle.cos() + torch.cat([-two, one], -1) * angle.sin()

    def forward(self, x):
        x = self.enter(x).flatten(2).transpose(1, 2) + self.word(torch.arange(4, device=x.device))
        batch, length, _ = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.num_heads, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.rotate(query), self.rotate(key), value)
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1)))


def image():
    return torch.randn(2, 3, 8, 8)


def convolutions(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))


ZOO = {
    "plain": lambda: convolutions(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Sigmoid(), nn.MaxPool2d(2)
    ),
    "residual": Residual,
    "bottleneck": Bottleneck,
    "depthwise": lambda: convolutions(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), nn.Hardswish(), nn.Conv2d(12, 6, 1)
    ),
    "grouped": lambda: convolutions(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=2), nn.PReLU(8)),
    "concat": Dense,
    "shuffle": Shuffle,
    "squeeze-excite": SqueezeExcite,
    "flatten": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)),
    "autoencoder": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2, stride=2), nn.BatchNorm2d(8),
        nn.ELU(), nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 3, 1),
    ),
    "group-norm": lambda: convolutions(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.Conv2d(8, 4, 3)),
    "tied": Tied,
    "lstm": lambda: Recurrent(nn.LSTM),
    "lstm-deep": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2, bias=False),
    "rnn": lambda: Recurrent(nn.RNN, bidirectional=True, nonlinearity="relu"),
    "gated": Gated,
    "rotary-tied": Rotary,
    "pixels": lambda: convolutions(
        nn.Conv2d(3, 16, 3), nn.PixelShuffle(2), nn.Conv2d(4, 6, 1), nn.PixelUnshuffle(2), nn.Conv2d(24, 8, 1),
        nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1),
    ),
    "grouped-transposed": lambda: convolutions(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.ConvTranspose2d(12, 8, 2, stride=2, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ),
    "vit": Vit,
    "vit-matmul": lambda: Vit(fused=False),
}  # fmt: skip


def prepared(name):
    torch.manual_seed(0)
    batch = torch.randn(2, 3) if name == "tied" else image()
    net = ZOO[name]()
    net(batch)  # lazy layers take shape, norms take statistics
    for buffer_name, buffer in net.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_()
    return net, batch


def half(group):
    return torch.randperm(group.size)[: (group.size + 1) // 2].sort().values


def zeroed(net, choices):
    """Zero the slices of removed channels in every parameter: the plain, full-size network, with masks."""
    twin = copy.deepcopy(net).eval()
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for group, kept in choices:
            gone = [channel for channel in range(group.size) if channel not in kept.tolist()]
            for member in group.members:
                if member.name in parameters:
                    parameters[member.name].index_fill_(member.dim, member.index[gone].flatten(), 0)
    return twin


@pytest.mark.parametrize("name", ZOO)
def test_shrunk_network_equals_the_one_zeroed_by_hand(name):
    net, batch = prepared(name)
    coupling = couple(capture_network(net, (batch,)))
    choices = [(group, half(group)) for group in coupling.groups if not group.is_normalized]
    assert choices
    assert not coupling.unknown
    reference, size = zeroed(net, choices)(batch), sum(parameter.numel() for parameter in net.parameters())
    shrunk = shrink_channels(net, coupling, choices, (batch,))
    assert not shrunk.refused
    assert net.training
    assert shrunk.error <= 1e-5
    torch.testing.assert_close(net.eval()(batch), reference, atol=1e-5, rtol=1e-4)
    assert sum(parameter.numel() for parameter in net.parameters()) < size
    net.train()(batch).sum().backward()


@pytest.mark.parametrize("name", ZOO)
def test_every_group_can_go_on_its_own_and_twice(name):
    net, batch = prepared(name)
    for _ in range(2):
        coupling = couple(capture_network(net, (batch,)))
        for group in coupling.groups:
            if group.size > 1:
                assert not shrink_channels(copy.deepcopy(net), coupling, [(group, half(group))], (batch,)).refused
        choices = [(group, half(group)) for group in coupling.groups if group.size > 1]
        if choices:
            shrink_channels(net, coupling, choices, (batch,))


def test_a_weight_given_by_direction_and_length_equals_the_plain_one_without_its_rows():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), nn.ReLU())
    net.append(nn.Linear(6, 2))
    batch, kept = torch.randn(4, 3), torch.tensor([0, 2, 5])
    with torch.no_grad():
        weight, reader = net[2].weight.clone(), net[4].weight.clone()
        reader[:, [1, 3, 4]] = 0
        wanted = F.linear(net[1](net[0](batch)), weight, net[2].bias).relu() @ reader.T + net[4].bias
    coupling = couple(capture_network(net, (batch,)))
    (group,) = (group for group in coupling.groups if group.size == 6)
    assert not shrink_channels(net, coupling, [(group, kept)], (batch,)).refused
    assert net[2].weight.shape == (3, 8)
    torch.testing.assert_close(net(batch), wanted)


class Baked(nn.Module):
    """Two layers; the width between them is a number that no attribute names."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.three(F.relu(self.two(F.relu(self.one(x)).reshape(2, 6))))


def unsettled(net, batch):
    """The coupling of a graph alone, of whose code nothing is known."""
    return couple(replace(capture_network(net, (batch,)), shape_model=None))


def test_a_group_that_cannot_be_cut_stays_whole_and_the_others_go():
    torch.manual_seed(0)
    net, batch = Baked(), torch.randn(2, 3)
    coupling = unsettled(net, batch)
    shrunk = shrink_channels(net, coupling, [(group, half(group)) for group in coupling.groups], (batch,))
    assert list(shrunk.refused) == ["one.weight"]
    assert net.one.weight.shape == (6, 3)
    assert net.two.weight.shape == (3, 6)


def test_attention_of_torch_loses_whole_heads_with_the_width_that_it_is_compared_with():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net, batch = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)), torch.randn(2, 5, 3)
    coupling = couple(capture_network(net, (batch,)))
    shrunk = shrink_channels(net, coupling, [(group, half(group)) for group in coupling.groups], (batch,))
    assert not shrunk.refused
    assert layer.linear1.out_features == 8
    assert layer.self_attn.in_proj_weight.shape == (12, 4)
    assert (layer.self_attn.num_heads, layer.self_attn.embed_dim) == (1, 4)
    net.train()(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_search_that_would_not_end_refuses_what_it_has_not_proved(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("lightning_optim.pruning.shrink.trial.PARAMETERS", 0)
    net = nn.Sequential(Baked(), nn.ReLU(), *(nn.Linear(2, 2) for _ in range(24)))
    batch = torch.randn(2, 3)
    coupling = unsettled(net, batch)
    shrunk = shrink_channels(net, coupling, [(group, half(group)) for group in coupling.groups], (batch,))
    assert "10 trials did not find which cuts are right" in shrunk.refused.values()
    assert net[0].one.weight.shape == (6, 3)
    assert shrunk.error <= 1e-5
    assert sum(parameter.shape[0] == 1 for parameter in net.parameters()) > 2


def test_nothing_has_changed_when_every_group_is_refused():
    torch.manual_seed(0)
    net, batch = Baked(), torch.randn(2, 3)
    coupling = unsettled(net, batch)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ShrinkError, match=r"'one\.weight' cannot be cut"):
        shrink_channels(net, coupling, [(coupling.group_of("one.weight"), torch.arange(3))], (batch,))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_wrong_group_is_refused_even_where_weights_start_at_zero():
    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(2, 3)
    coupling = couple(capture_network(net, (batch,)))
    nn.init.zeros_(net[2].weight)
    first = coupling.groups[0].members
    shifted = Member("2.weight", 1, first[2].index.roll(1, 0), 4)
    with pytest.raises(ShrinkError, match="differ"):
        shrink_channels(net, coupling, [(Group(4, (*first[:2], shifted)), torch.tensor([0, 2, 3]))], (batch,))


def test_a_model_that_changed_since_its_capture_is_refused():
    net, batch = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    coupling = couple(capture_network(net, (batch,)))
    choices = [(coupling.groups[0], torch.tensor([1]))]
    shrink_channels(net, coupling, choices, (batch,))
    with pytest.raises(ShrinkError, match="capture and couple it again"):
        shrink_channels(net, coupling, choices, (batch,))


def test_the_last_channel_of_a_group_cannot_go():
    net, batch = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    coupling = couple(capture_network(net, (batch,)))
    with pytest.raises(ShrinkError, match="keep at least one"):
        shrink_channels(net, coupling, [(coupling.groups[0], torch.tensor([], dtype=torch.long))], (batch,))


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_shrink_to_their_masked_selves(seed):
    torch.manual_seed(seed)
    draw = lambda *options: options[int(torch.randint(len(options), ()))]  # noqa: E731  # one line says it

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.kinds, width = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1)]), ["plain"], 8
            for _ in range(6):
                kind = draw("plain", "add", "cat", "scale", "depthwise", "halves")
                out = {"cat": draw(2, 4), "plain": draw(4, 8, 12), "halves": width // 2}.get(kind, width)
                inside = {"depthwise": width, "halves": 1}.get(kind, 1)
                entering = width // 2 if kind == "halves" else width
                self.layers.append(nn.Conv2d(entering, out, 3, padding=1, groups=inside))
                self.kinds.append(kind)
                width = {"cat": width + out, "plain": out}.get(kind, width)
            self.head = nn.Linear(width, 3)

        def forward(self, x):
            for layer, kind in zip(self.layers, self.kinds, strict=True):
                if kind == "halves":
                    left, right = x.chunk(2, 1)
                    x = torch.cat([layer(left).tanh(), right], 1)
                    continue
                y = layer(x).relu() if kind != "scale" else layer(x.mean((2, 3), keepdim=True)).sigmoid()
                x = {"add": lambda x=x, y=y: x + y, "cat": lambda x=x, y=y: torch.cat([y, x], 1)}.get(
                    kind, lambda x=x, y=y, kind=kind: x * y if kind == "scale" else y
                )()
            return self.head(x.amax((2, 3)))

    net, batch = Random(), image()
    coupling = couple(capture_network(net, (batch,)))
    choices = [(group, half(group)) for group in coupling.groups]
    reference = zeroed(net, choices)(batch)
    assert not shrink_channels(net, coupling, choices, (batch,)).refused
    torch.testing.assert_close(net(batch), reference, atol=1e-5, rtol=1e-4)
