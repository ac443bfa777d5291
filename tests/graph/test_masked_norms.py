import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.graph import capture_network, couple
from lightning_optim.graph.masked_norms import MaskedNorms

BATCH = (torch.rand(2, 3),)


def found(net):
    coupling = couple(capture_network(net, BATCH))
    choices = [(group, torch.arange(group.size // 2)) for group in coupling.groups]
    return MaskedNorms(net, coupling, choices)


def test_layer_is_named_with_what_is_left_of_it():
    norms = found(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    (norm,) = norms.norms.values()
    assert [*norms.norms] == ["1"]
    assert norm.reads[0][0] == 1
    assert norm.reads[0][1].tolist() == norm.writes[0][1].tolist() == [0, 1]
    assert {name: cuts[0][1].tolist() for name, cuts in norm.plan.items()} == {"weight": [0, 1], "bias": [0, 1]}
    assert list(norms.competing.values()) == [[("layer_norm", "1")]]


def test_no_statistic_over_channels_needs_nothing():
    norms = found(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    assert not norms.norms
    assert not norms.competing


def test_length_of_a_weight_is_that_of_what_is_left():
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    norms = found(nn.Sequential(nn.Linear(3, 4), normed, nn.Linear(4, 2)))
    assert not norms.competing  # a length does not change with entries that are zero


class TwoPlaces(nn.Module):
    """One norm at two places that lose other channels each."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), Plain()

    def forward(self, inputs):
        return self.head(self.norm(self.b(self.norm(self.a(inputs)))))


class Plain(nn.Module):
    """A norm without parameters: nothing couples what it is called with."""

    def forward(self, hidden):
        return hidden / hidden.mean(-1, keepdim=True)


def test_layer_that_would_be_left_with_other_channels_at_each_call_is_not_masked():
    net = TwoPlaces()
    coupling = couple(capture_network(net, BATCH))
    first, second = coupling.groups
    alike = MaskedNorms(net, coupling, [(first, torch.tensor([0, 1])), (second, torch.tensor([0, 1]))])
    other = MaskedNorms(net, coupling, [(first, torch.tensor([0, 1])), (second, torch.tensor([2, 3]))])
    assert [*alike.norms] == ["norm"]
    assert not other.norms
    assert len(other.competing) == 2


class WithLayers(nn.Module):
    """Takes a statistic in a module with layers of its own, which others may look at."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, hidden):
        return self.inner(F.relu(hidden - hidden.mean(-1, keepdim=True)))


def test_module_with_layers_of_its_own_is_not_masked():
    norms = found(nn.Sequential(nn.Linear(3, 4), WithLayers(), nn.Linear(4, 2)))
    assert not norms.norms
    assert [places[0][1] for places in norms.competing.values()] == ["1"]
