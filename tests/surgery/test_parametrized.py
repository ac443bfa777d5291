"""Originals of weights that a layer computes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_optim.surgery.parametrized import (
    is_weight_normed,
    keep_directions,
    layer_name,
    own_parameters,
    pruned_weight,
    scored_weight,
    weight_name,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Of(nn.Module):
    """A parametrization by a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, weight):
        return self.function(weight)


def of(function):
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Of(function), unsafe=True)
    return layer


ORIGINAL = "parametrizations.weight.original"


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: nn.Linear(4, 4), "weight"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), f"{ORIGINAL}1"),
        (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), ORIGINAL),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "weight_v"),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "weight_orig"),
        (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "weight_orig"),
        (lambda: of(torch.tanh), ORIGINAL),
        (lambda: of(torch.exp), None),
        (lambda: of(lambda weight: weight.triu() + weight.triu(1).T), None),
        (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), None),
    ],
)
def test_a_weight_is_pruned_through_what_makes_zeros_of_zeros(make, key):
    layer = make()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert weight_name("", layer) == key
    assert (pruned_weight(layer) is None) == (key is None)
    if key is not None:
        assert layer_name(weight_name("net.0", layer)) == "net.0"
        assert pruned_weight(layer).shape == (4, 4, 3, 3)[: pruned_weight(layer).dim()]
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_whole_slices_go_by_their_length_and_single_weights_by_their_direction(norm, dim):
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(3, 4), dim=dim))
    keep = torch.tensor([[True, True, False], [False] * 3, [True, False, False], [True, False, False]])
    masks = keep_directions(net, {weight_name("0", net[0]): keep})
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    net(torch.ones(1, 3))  # hooks compute the weight before a call
    assert torch.equal(net[0].weight != 0, keep)
    assert is_weight_normed(net[0])


def test_what_is_scored_is_the_weight_that_counts():
    layer = parametrizations.weight_norm(nn.Linear(3, 4))
    with torch.no_grad():
        layer.get_parameter(f"{ORIGINAL}0").mul_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    torch.testing.assert_close(scored_weight(layer), layer.weight)
    assert not scored_weight(layer).requires_grad


def test_originals_are_parameters_of_their_layer():
    layer = parametrizations.weight_norm(nn.ConvTranspose2d(2, 3, 3))
    assert [parameter.dim() for parameter in own_parameters(layer)] == [1, 4, 4]
    assert not own_parameters(layer.parametrizations.weight)
    assert [parameter.dim() for parameter in own_parameters(nn.Linear(2, 3))] == [2, 1]
