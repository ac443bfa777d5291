import pytest
import torch
from torch import nn

from lightning_optim.errors import TargetError
from lightning_optim.graph import capture_network, couple
from lightning_optim.pruning import Channel
from lightning_optim.pruning.structure.coupled import activations_as_read


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def coupling(network):
    return couple(capture_network(network, (torch.ones(2, 1, 2, 2),)))


def test_a_channel_scores_its_weights_scaled_to_a_mean_of_one(network, coupling):
    weights = {"0.weight": network[0].weight}
    scores = {"0.weight": torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)}
    assert Channel().pools(weights, scores, coupling)["0.weight"].tolist() == [1.5, 0.5]


def test_the_layer_that_reads_a_channel_has_a_vote(network, coupling):
    weights = {"0.weight": network[0].weight, "3.weight": network[3].weight}
    makes = torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)
    reads = torch.tensor([0.0] * 4 + [1.0] * 4).expand(network[3].weight.shape)  # four positions of each channel
    found = Channel().pools(weights, {"0.weight": makes, "3.weight": reads}, coupling)["0.weight"]
    assert found.tolist() == [(1.5 + 0.0) / 2, (0.5 + 2.0) / 2]
    per_channel = {"0.weight": makes.flatten(), "3.weight": reads.sum(1)}
    assert Channel().pools(weights, per_channel, coupling)["0.weight"].tolist() == [1.5, 0.5]


def test_a_masked_channel_is_zero_in_all_that_makes_and_reads_it(network, coupling):
    parameters = dict(network.named_parameters())
    masks = Channel().masks({"0.weight": torch.tensor([False, True])}, parameters, coupling)
    assert masks["0.weight"].flatten().tolist() == [False, True]
    assert masks["0.bias"].tolist() == [False, True]
    assert masks["3.weight"][0].tolist() == [False] * 4 + [True] * 4
    assert "3.bias" not in masks


def test_activations_are_averaged_over_every_position_that_reads_a_channel(network, coupling):
    reads = {"3.weight": torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 8.0])}
    found = activations_as_read(coupling, reads, {"0.weight": network[0].weight})
    assert found["0.weight"].tolist() == [2.5, 2.0]


@pytest.mark.parametrize(
    ("multiple", "kept"), [(1, [False, False, True, False]), (2, [False, True, True, False]), (8, [True] * 4)]
)
def test_the_best_come_back_until_a_multiple_is_kept(multiple, kept):
    scores = {"pool": torch.tensor([0.1, 0.3, 0.4, 0.2])}
    keep = {"pool": torch.tensor([False, False, True, False])}
    assert Channel(multiple=multiple).fitted(keep, scores)["pool"].tolist() == kept


def test_what_has_gone_does_not_come_back_for_a_multiple():
    scores = {"pool": torch.tensor([-torch.inf, 0.3, -torch.inf, 0.2])}
    keep = {"pool": torch.tensor([False, True, False, False])}
    assert Channel(multiple=4).fitted(keep, scores)["pool"].tolist() == [False, True, False, True]


def test_one_channel_always_stays():
    scores = {"pool": torch.tensor([0.1, 0.3])}
    assert Channel().fitted({"pool": torch.zeros(2, dtype=torch.bool)}, scores)["pool"].tolist() == [False, True]


def test_layers_whose_channels_reach_the_output_have_none_to_remove(network, coupling):
    with pytest.raises(TargetError, match="none of the 1 targeted layers"):
        Channel().pools({"3.weight": network[3].weight}, {"3.weight": network[3].weight}, coupling)
