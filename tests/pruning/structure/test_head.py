import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph import capture_network, couple
from lightning_optim.pruning import Head, shrink_channels, targeted_groups

HEADS, SHARED, WIDTH = 6, 3, 4


class Attention(nn.Module):
    """Six heads of queries over three of keys and values; a linear layer before and one after."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.query = nn.Linear(8, HEADS * WIDTH)
        self.key, self.value = nn.Linear(8, SHARED * WIDTH), nn.Linear(8, SHARED * WIDTH)
        self.out = nn.Linear(HEADS * WIDTH, 7)

    def split(self, tensor):
        return tensor.unflatten(-1, (-1, WIDTH)).transpose(1, 2)

    def forward(self, x):
        x = self.embed(x).relu()
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def without(self, x, gone):
        """The same one head at a time, leaving out the shared heads in ``gone``."""
        x, total = self.embed(x).relu(), self.out.bias.expand(*x.shape[:2], -1)
        for head in range(HEADS):
            shared = head // (HEADS // SHARED)
            if shared not in gone:
                mine, theirs = slice(head * WIDTH, (head + 1) * WIDTH), slice(shared * WIDTH, (shared + 1) * WIDTH)
                weights = self.query(x)[..., mine] @ self.key(x)[..., theirs].transpose(1, 2) / WIDTH**0.5
                total = total + weights.softmax(-1) @ self.value(x)[..., theirs] @ self.out.weight[:, mine].T
        return total


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Attention()


@pytest.fixture
def batch():
    return torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def coupling(network, batch):
    return couple(capture_network(network, (batch,)))


def weights_of(network, *names):
    return {f"{name}.weight": getattr(network, name).weight.detach() for name in names}


def test_heads_that_share_a_key_are_scored_together_and_other_channels_are_left_alone(network, coupling):
    weights = weights_of(network, "embed", "query", "key", "value", "out")
    pools = Head().pools(weights, {name: weight.abs() for name, weight in weights.items()}, coupling)
    assert list(pools) == ["query.weight"]
    votes = []
    for name in ("query", "key", "value"):
        per_head = weights[f"{name}.weight"].abs().view(SHARED, -1).mean(1)
        votes.append(per_head / per_head.mean())
    per_head = weights["out.weight"].abs().T.reshape(SHARED, -1).mean(1)
    votes.append(per_head / per_head.mean())
    torch.testing.assert_close(pools["query.weight"], torch.stack(votes).mean(0))


@pytest.mark.parametrize("gone", [[0], [2], [0, 1]])
def test_masked_heads_take_no_part(network, coupling, batch, gone):
    expected = network.without(batch, gone)
    parameters = dict(network.named_parameters())
    keep = torch.ones(SHARED, dtype=torch.bool)
    keep[gone] = False
    masks = Head().masks({"query.weight": keep}, parameters, coupling)
    assert {name for name in masks if name.startswith("embed")} == set()
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
    torch.testing.assert_close(network(batch), expected)


def test_removed_heads_take_no_part(network, coupling, batch):
    expected = network.without(batch, [1])
    small = copy.deepcopy(network)
    groups = targeted_groups(coupling, weights_of(network, "query"))
    shrink_channels(small, coupling, [(groups["query.weight"], torch.tensor([0, 2]))], (batch,))
    assert (small.query.out_features, small.key.out_features, small.out.in_features) == (16, 8, 16)
    torch.testing.assert_close(small(batch), expected)


class Packed(nn.Module):
    """PyTorch's attention, whose heads are no layer's."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(5, 12), nn.Linear(12, 7)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        return self.out(self.attention(x, x, x, need_weights=False)[0])


def test_heads_that_no_layer_makes_are_scored_by_the_layer_that_reads_them(batch):
    torch.manual_seed(0)
    net = Packed()
    coupling = couple(capture_network(net, (batch,)))
    weights = {name: weight.detach() for name, weight in net.named_parameters() if name.endswith(".weight")}
    structure = Head()
    assert [name for name in weights if structure.concerns(name, coupling)] == ["attention.out_proj.weight"]
    pools = structure.pools(weights, {name: weight.abs() for name, weight in weights.items()}, coupling)
    assert list(pools) == ["attention.out_proj.weight"]
    columns = net.attention.out_proj.weight.detach().abs().view(12, 3, 4).sum((0, 2))
    torch.testing.assert_close(pools["attention.out_proj.weight"], columns / columns.mean())
    with pytest.raises(TargetError, match="its scores are of what it writes"):
        structure.pools(weights, {name: weight.abs().sum(1) for name, weight in weights.items()}, coupling)


def test_one_head_always_stays():
    settled = Head().fitted({"a": torch.zeros(3, dtype=torch.bool)}, {"a": torch.tensor([0.1, 0.3, 0.2])})
    assert settled["a"].tolist() == [False, True, False]


def test_layers_that_make_no_head_are_refused(network, coupling):
    weights = weights_of(network, "embed")
    with pytest.raises(TargetError, match="none of the 1 targeted layers makes attention heads"):
        Head().pools(weights, weights, coupling)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="shrink must be"):
        Head(shrink="now")
    with pytest.raises(ShrinkError, match="not known yet"):
        Head().pools({}, {}, None)
