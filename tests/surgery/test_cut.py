"""Cuts of live layers."""

import io

import pytest
import torch
from torch import nn

from lightning_optim.errors import ShrinkError
from lightning_optim.surgery import apply_cut
from lightning_optim.surgery.cut import cut_tensor

KEPT = torch.tensor([0, 2])


def test_a_layer_knows_its_new_shape():
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    apply_cut(convolution, {"weight": [(0, KEPT), (1, torch.tensor([1]))], "bias": [(0, KEPT)]})
    apply_cut(norm, {name: [(0, KEPT)] for name in ("weight", "bias", "running_mean", "running_var")})
    assert (convolution.in_channels, convolution.out_channels, norm.num_features) == (1, 2, 2)
    assert norm(convolution(torch.randn(2, 1, 5, 5))).shape == (2, 2, 3, 3)


def test_a_depthwise_convolution_loses_groups():
    layer = nn.Conv2d(4, 8, 3, groups=4)
    apply_cut(layer, {"weight": [(0, torch.tensor([0, 1, 4, 5]))], "bias": [(0, torch.tensor([0, 1, 4, 5]))]})
    assert (layer.groups, layer.in_channels, layer.out_channels) == (2, 2, 4)
    assert layer(torch.randn(1, 2, 5, 5)).shape == (1, 4, 3, 3)


def test_a_grouped_convolution_keeps_its_groups():
    layer = nn.Conv2d(4, 8, 3, groups=2)
    apply_cut(layer, {"weight": [(1, torch.tensor([1]))]})
    assert (layer.groups, layer.in_channels) == (2, 2)


def test_transposed_convolution_embedding_layer_norm_and_group_norm_follow():
    up, embedding, layer_norm, group_norm = (
        nn.ConvTranspose2d(4, 3, 2),
        nn.Embedding(5, 4),
        nn.LayerNorm(4),
        nn.GroupNorm(4, 4),
    )
    apply_cut(up, {"weight": [(0, KEPT)]})
    apply_cut(embedding, {"weight": [(1, KEPT)]})
    apply_cut(layer_norm, {"weight": [(0, KEPT)], "bias": [(0, KEPT)]})
    apply_cut(group_norm, {"weight": [(0, KEPT)], "bias": [(0, KEPT)]})
    assert (up.in_channels, up.out_channels, embedding.embedding_dim) == (2, 3, 2)
    assert (layer_norm.normalized_shape, group_norm.num_channels, group_norm.num_groups) == ((2,), 2, 2)


def test_tied_parameters_stay_tied_and_frozen_ones_frozen():
    net = nn.ModuleDict({"one": nn.Linear(4, 4, bias=False), "two": nn.Linear(4, 4, bias=False)})
    net["two"].weight = net["one"].weight
    net["one"].weight.requires_grad_(False)
    replaced = apply_cut(net, {"one.weight": [(1, KEPT)]})
    assert net["one"].weight is net["two"].weight
    assert not net["two"].weight.requires_grad
    assert net["two"].in_features == 2
    assert len(replaced) == 1


def test_channels_last_weights_stay_so():
    weight = torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    cut = cut_tensor(weight, [(0, KEPT), (1, KEPT)])
    assert cut.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(cut, weight[KEPT][:, KEPT])


def test_an_integer_attribute_becomes_the_number_kept():
    layer = nn.Linear(2, 2)
    layer.num_heads = 4
    apply_cut(layer, {"num_heads": [(0, KEPT)]})
    assert layer.num_heads == 2


def test_a_plan_from_a_checkpoint_resizes_a_fresh_model():
    plan = {"0.weight": [(0, KEPT)], "0.bias": [(0, KEPT)], "2.weight": [(1, KEPT)]}
    trained, fresh = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    apply_cut(trained, plan)
    stored = io.BytesIO()
    torch.save({"plan": plan, "state": trained.state_dict()}, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=True)
    apply_cut(fresh, loaded["plan"])
    fresh.load_state_dict(loaded["state"])
    batch = torch.randn(2, 3)
    assert torch.equal(fresh(batch), trained(batch))


def test_names_hold_in_a_compiled_model():
    net = torch.compile(nn.Sequential(nn.Linear(3, 4)), backend="eager")
    apply_cut(net, {"0.weight": [(0, KEPT)], "0.bias": [(0, KEPT)]})
    assert net._orig_mod[0].out_features == 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"weight": [(0, KEPT)], "missing": [(0, KEPT)]}, "another model"),
        ({"weight": [(0, KEPT)], "bias": [(0, torch.tensor([7]))]}, "cut already"),
        ({"weight": [(0, KEPT)], "bias": [(1, KEPT)]}, "1 dimensions"),
        ({"weight": [(0, KEPT)], "bias": [(0, torch.tensor([], dtype=torch.long))]}, "left empty"),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(plan, message):
    layer = nn.Linear(3, 4)
    with pytest.raises(ShrinkError, match=message):
        apply_cut(layer, plan)
    assert layer.weight.shape == (4, 3)
