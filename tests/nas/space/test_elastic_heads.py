import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_optim import Targets
from lightning_optim.errors import TargetError
from lightning_optim.nas import (
    ElasticDepth,
    ElasticEmbedding,
    ElasticExpansion,
    ElasticHeads,
    ElasticWidth,
    OperationChoice,
)
from lightning_optim.surgery.attention import PrunedMultiheadAttention
from nas_laws import assert_same, check_paths, converted, outputs


def heads(*include, **settings):
    return ElasticHeads(targets=Targets(include=include or ("*",)), **settings)


class Encoder(nn.Module):
    """Layers of torch's, which in evaluation compute with their modules' weights and call none of them."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        self.embed, self.encoder, self.head = nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


class Attention(nn.Module):
    """Query, key and value in one layer, read by a view that names the number of heads, or by one that does not."""

    def __init__(self, how):
        super().__init__()
        self.how, self.num_heads, self.head_dim = how, 4, 2
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        batch, length, _ = x.shape
        if self.how == "counted":
            parts = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        elif self.how == "written":
            parts = self.qkv(x).reshape(batch, length, 3, 4, 2).permute(2, 0, 3, 1, 4)
        else:
            parts = [part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)]
        query, key, value = parts
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    def __init__(self, how="counted"):
        super().__init__()
        self.embed, self.position = nn.Embedding(10, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.attention, self.norm, self.head = Attention(how), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, ids):
        x = self.embed(ids) + self.position
        return self.head(self.norm(x + self.attention(x)).mean(1))


SEQUENCES = (torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)),)
IDS = (torch.randint(10, (2, 5), generator=torch.Generator().manual_seed(0)),)


def test_everything_of_an_encoder_of_torchs_varies_at_once_and_is_extracted_bit_for_bit():
    torch.manual_seed(0)
    layers = Targets(include=("encoder.layers.*",))
    supernet = converted(
        Encoder(), SEQUENCES, heads=heads(), expansion=ElasticExpansion(targets=layers, ratios=(1,)),
        embedding=ElasticEmbedding(targets=Targets(include=("embed",)), fractions=(0.5, 1.0)),
        depth=ElasticDepth(targets=Targets(include=("encoder.layers",))),
    )  # fmt: skip
    assert [entry.name.replace("encoder.layers", "") for entry in supernet.decisions] == [
        ":depth", ".0.self_attn:heads", ".1.self_attn:heads", ".0.linear1:expansion", ".1.linear1:expansion",
        "embed:embedding",
    ]  # fmt: skip
    # Four numbers of heads and two expansions a layer, one layer or two, and two embeddings.
    assert supernet.space.num_candidates == 2 * (4 * 2 + (4 * 2) ** 2)
    check_paths(supernet, SEQUENCES)


def test_in_evaluation_an_encoder_layer_runs_the_path_though_it_calls_none_of_its_modules():
    torch.manual_seed(0)
    widths = ElasticWidth(targets=Targets(include=("encoder.layers.*.linear1",)), fractions=(0.25, 1.0))
    wide = OperationChoice(
        targets=Targets(include=("encoder.layers.0.linear2",)), candidates={"other": lambda: nn.Linear(16, 8)}
    )
    for space in ({"widths": widths}, {"wide": wide}):
        supernet = converted(Encoder(), SEQUENCES, **space)
        net = supernet.site.root.eval()
        with torch.no_grad():
            own = outputs(net, SEQUENCES)
            supernet.activate(supernet.default | {supernet.decisions[0].name: 0 if "widths" in space else 1})
            assert not torch.allclose(own[0], outputs(net, SEQUENCES)[0])
            supernet.activate(supernet.default)
            assert_same(own, outputs(net, SEQUENCES))
        check_paths(supernet, SEQUENCES)


class Masked(nn.Module):
    """An attention of torch's with all that it can be given."""

    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, **settings)
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        mixed, weights = self.attention(x, x, x, attn_mask=mask)
        return self.head(x + mixed), weights


@pytest.mark.parametrize(
    "settings", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}, {"dropout": 0.3}]
)
def test_heads_of_torchs_own_attention(settings):
    torch.manual_seed(0)
    supernet = converted(Masked(**settings), SEQUENCES, heads=heads("attention", heads=(1, 3)))
    (decision,) = supernet.decisions
    assert (decision.name, decision.options) == ("attention:heads", ("1", "3", "4"))
    check_paths(supernet, SEQUENCES)
    subnet = supernet.extract({"attention:heads": 1}).attention
    assert (type(subnet), subnet.num_heads, subnet.head_dim) == (PrunedMultiheadAttention, 3, 2)
    assert type(supernet.extract(supernet.default).attention) is nn.MultiheadAttention


@pytest.mark.parametrize("how", ["counted", "chunked"])
def test_packed_heads_follow_with_the_embedding(how):
    torch.manual_seed(0)
    stream = ElasticEmbedding(targets=Targets(include=("embed",)), fractions=(0.25, 1.0))
    supernet = converted(Tokens(how), IDS, heads=heads("attention"), stream=stream)
    check_paths(supernet, IDS)
    subnet = supernet.extract({"attention:heads": 0, "embed:embedding": 0})
    assert tuple(subnet.attention.qkv.weight.shape) == (3 * 2, 2)
    assert (subnet.attention.num_heads, subnet.attention.head_dim) == (1, 2)


@pytest.mark.parametrize(
    ("include", "settings", "message"),
    [
        (("attention",), {}, "'attention' matches no module with attention .*'attention.qkv.weight' must stay whole"),
        (("norm",), {}, "'norm' matches no module with attention heads inside"),
        (("att",), {}, "did you mean 'attention'"),
    ],
)  # fmt: skip
def test_heads_that_cannot_follow_are_refused_by_name(include, settings, message):
    with pytest.raises(TargetError, match=message):
        converted(Tokens("written"), IDS, heads=heads(*include, **settings))


def test_numbers_that_no_attention_has_are_refused():
    with pytest.raises(TargetError, match="no attention has more than 4 heads"):
        converted(Tokens(), IDS, heads=heads(heads=(4, 8)))
    with pytest.raises(ValueError, match="heads must ascend from at least 1"):
        heads(heads=(0, 2))


def test_an_excluded_attention_keeps_its_heads():
    targets = Targets(exclude=("encoder.layers.0",))
    supernet = converted(Encoder(), SEQUENCES, heads=ElasticHeads(targets=targets))
    assert [entry.name for entry in supernet.decisions] == ["encoder.layers.1.self_attn:heads"]
