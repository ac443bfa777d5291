import copy
import io
import itertools

import onnxruntime
import pytest
import torch
from torch import nn

from lightning_optim.surgery import apply_cut
from lightning_optim.surgery.attention import PrunedMultiheadAttention, free_cut_heads, free_heads

N, T, S, E, H, D = 2, 5, 4, 12, 3, 4
KEPT = [0, 2]
KINDS = {
    "packed": {},
    "separate": {"kdim": 6, "vdim": 7},
    "no bias": {"bias": False},
    "separate, no bias": {"kdim": 6, "vdim": 7, "bias": False},
    "added keys": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 6, "vdim": 7},
}
MASKS = {
    "no mask": {},
    "boolean": {"attn_mask": torch.ones(T, S, dtype=torch.bool).triu(1)},
    "logits": {"attn_mask": torch.randn(T, S, generator=torch.Generator().manual_seed(2))},
    "padded": {"key_padding_mask": torch.tensor([[False] * S, [False, False, True, True]])},
    "both": {
        "attn_mask": torch.ones(T, S, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.tensor([[False] * S, [False, False, True, True]]),
    },
    "causal": {"attn_mask": torch.ones(T, S, dtype=torch.bool).triu(1), "is_causal": True},
}


def attention(**settings):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(E, H, **settings)
    for parameter in made.parameters():  # biases start at zero, and would hide a wrong one
        nn.init.normal_(parameter, std=0.5)
    return made.eval()


def inputs(settings):
    """Query, key and value, of whatever order the module takes; keys and values differ where they may."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(N, length, width, generator=generator)
        for length, width in ((T, E), (S, settings.get("kdim", E)), (S, settings.get("vdim", E)))
    )
    if settings.get("batch_first"):
        return query, key, value
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def heads_only(made, kept=KEPT):
    """What is kept of every tensor of an attention if only some heads are."""
    rows = torch.arange(H * D).view(H, D)[kept].flatten()
    packed = torch.cat([rows + H * D * part for part in range(3)])
    places = {"in_proj_weight": (0, packed), "in_proj_bias": (0, packed), "bias_k": (2, rows), "bias_v": (2, rows)}
    places |= {f"{kind}_proj_weight": (0, rows) for kind in "qkv"} | {"out_proj.weight": (1, rows)}
    held = dict(made.named_parameters())
    return {name: [place] for name, place in places.items() if name in held} | {"num_heads": [(0, torch.tensor(kept))]}


def masked(made, kept=KEPT):
    """The same attention with the columns zeroed that read the other heads."""
    twin = copy.deepcopy(made)
    with torch.no_grad():
        for head in set(range(H)) - set(kept):
            twin.out_proj.weight[:, head * D : (head + 1) * D] = 0
    return twin


def cut(made, kept=KEPT):
    small = copy.deepcopy(made)
    apply_cut(small, heads_only(small, kept))
    assert type(small) is PrunedMultiheadAttention
    return small


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_fewer_heads_give_what_the_others_zeroed_give(kind, masks):
    for batch_first, need_weights in itertools.product((False, True), (False, True)):
        settings = {**kind, "batch_first": batch_first}
        made = attention(**settings)
        output, weights = cut(made)(*inputs(settings), need_weights=need_weights, **masks)
        expected, _ = masked(made)(*inputs(settings), need_weights=need_weights, **masks)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        assert (weights is not None) == need_weights


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_returned_weights_are_those_of_the_heads_that_are_left(kind):
    made = attention(**kind)
    small = cut(made)
    _, each = made(*inputs(kind), average_attn_weights=False)
    _, found = small(*inputs(kind), average_attn_weights=False)
    torch.testing.assert_close(found, each[:, KEPT])
    torch.testing.assert_close(small(*inputs(kind))[1], each[:, KEPT].mean(1))


def test_nothing_changes_where_no_head_goes():
    for kind, masks in itertools.product(KINDS.values(), MASKS.values()):
        made = attention(**kind)
        free = copy.deepcopy(made)
        free_heads(free)
        for found, wanted in zip(free(*inputs(kind), **masks), made(*inputs(kind), **masks), strict=True):
            torch.testing.assert_close(found, wanted)
        assert list(free.state_dict()) == list(made.state_dict())
        assert [getattr(free, name) for name in ("embed_dim", "kdim", "vdim", "head_dim")] == [
            getattr(made, name) for name in ("embed_dim", "kdim", "vdim", "head_dim")
        ]


def test_a_single_example_needs_no_batch():
    made = attention()
    query, key = torch.randn(T, E), torch.randn(S, E)
    padding = torch.tensor([False, False, True, False])
    for need_weights in (True, False):
        found = cut(made)(query, key, key, padding, need_weights)
        wanted = masked(made)(query, key, key, padding, need_weights)
        torch.testing.assert_close(found[0], wanted[0])
        assert found[1] is None or found[1].shape == wanted[1].shape


def test_masks_of_each_head_are_those_of_the_heads_that_are_left():
    made, masks = attention(), torch.randn(N, H, T, S)
    found, _ = cut(made)(*inputs({}), attn_mask=masks[:, KEPT].flatten(0, 1))
    wanted, _ = masked(made)(*inputs({}), attn_mask=masks.flatten(0, 1))
    torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError, match=r"one mask for each of the 2 heads that are left, got \[6, 5, 4\]"):
        cut(made)(*inputs({}), attn_mask=masks.flatten(0, 1))


def test_bad_masks_are_refused():
    small = cut(attention())
    with pytest.raises(RuntimeError, match="needs it"):
        small(*inputs({}), is_causal=True)
    with pytest.raises(RuntimeError, match=r"key_padding_mask must be \[2, 4\], got \[3, 4\]"):
        small(*inputs({}), key_padding_mask=torch.zeros(3, 4, dtype=torch.bool))


def test_gradients_are_those_of_the_masked_module():
    made = attention(add_bias_kv=True).train()
    small, full = cut(made), masked(made)
    for module in (small, full):
        module(*inputs({}))[0].square().sum().backward()
    places = heads_only(full)
    for name, parameter in full.named_parameters():
        wanted = parameter.grad
        for dim, kept in places.get(name, []):
            wanted = wanted.index_select(dim, kept)
        torch.testing.assert_close(small.get_parameter(name).grad, wanted, rtol=1e-4, atol=1e-4)


def test_dropout_falls_on_the_weights_in_training_alone():
    small = cut(attention(dropout=0.5))
    _, weights = small.train()(*inputs({}), average_attn_weights=False)
    assert 0.2 < float((weights == 0).float().mean()) < 0.8
    assert not (small.eval()(*inputs({}), average_attn_weights=False)[1] == 0).any()


@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_evaluates_by_the_heads_that_are_left(padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    full = copy.deepcopy(encoder)
    rows = torch.arange(4)  # two of four heads, each two wide
    packed = torch.cat([rows, rows + 8, rows + 16])
    plan = {"in_proj_weight": [(0, packed)], "in_proj_bias": [(0, packed)], "out_proj.weight": [(1, rows)]}
    plan["num_heads"] = [(0, torch.tensor([0, 1]))]
    apply_cut(encoder, {f"layers.1.self_attn.{name}": cuts for name, cuts in plan.items()})
    with torch.no_grad():
        full.layers[1].self_attn.out_proj.weight[:, 4:] = 0
    x, padding = torch.randn(2, 3, 8), torch.tensor([[False] * 3, [False, False, True]]) if padded else None
    with torch.no_grad():
        found, wanted = (net(x, src_key_padding_mask=padding) for net in (encoder, full))
    valid = slice(None) if padding is None else ~padding
    torch.testing.assert_close(found[valid], wanted[valid])


def test_it_is_saved_copied_and_exported_as_any_module():
    small, batch = cut(attention(batch_first=True)), inputs({"batch_first": True})
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(small)
    twin.load_state_dict(torch.load(file, weights_only=True))
    program = torch.export.export(twin, batch)
    for found, wanted in zip(program.module()(*batch), small(*batch), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", [KINDS["packed"], KINDS["both"]], ids=["packed", "both"])
def test_onnx_runtime_computes_the_same(kind, tmp_path):
    settings = {**kind, "batch_first": True}
    small, batch = cut(attention(**settings)), inputs(settings)
    torch.onnx.export(small, batch, tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    feeds = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), batch, strict=True)}
    for found, wanted in zip(session.run(None, feeds), small(*batch), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


def test_subclasses_and_whole_attentions_are_left_alone():
    class Own(nn.MultiheadAttention):
        pass

    root = nn.ModuleList([Own(E, H), nn.MultiheadAttention(E, H, kdim=6, vdim=7)])
    free_cut_heads(root)
    assert [type(module) for module in root] == [Own, nn.MultiheadAttention]
