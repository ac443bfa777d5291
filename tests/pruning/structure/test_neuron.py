import pytest
import torch
from torch import nn

from lightning_optim.pruning import GlobalThreshold, Neuron, Uniform


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 5))


def parts(network):
    weights = {name: p.detach() for name, p in network.named_parameters()}
    scores = {name: weight.abs() for name, weight in weights.items() if name.endswith("weight")}
    return weights, scores


def test_a_neuron_scores_the_mean_over_its_weights_and_the_best_one_stays(network):
    weights, scores = parts(network)
    pools = Neuron().pools(weights, scores, None)
    for name, pool in pools.items():
        means = [float(row.abs().mean()) for row in weights[name]]
        best = means.index(max(means))
        assert pool.isposinf().nonzero().flatten().tolist() == [best]
        assert [float(s) for i, s in enumerate(pool) if i != best] == pytest.approx(means[:best] + means[best + 1 :])


def test_a_masked_neuron_puts_out_zero_and_nothing_else_changes(network):
    weights, _ = parts(network)
    keep = {"0.weight": torch.arange(8) % 3 > 0, "3.weight": torch.tensor([True, False, True, True, False])}
    masks = Neuron().masks(keep, weights, None)
    assert set(masks) == {"0.weight", "3.weight", "3.bias"}
    images = torch.randn(3, 2, 4, 4)
    hidden, logits = network[0](images), network(images)
    with torch.no_grad():
        network[0].weight.mul_(masks["0.weight"])
    assert torch.equal(network[0](images), hidden * keep["0.weight"].view(1, -1, 1, 1))
    expected = network(images) * keep["3.weight"]
    with torch.no_grad():
        network[3].weight.mul_(masks["3.weight"])
        network[3].bias.mul_(masks["3.bias"])
    assert torch.equal(network(images), expected)
    assert not torch.equal(logits, expected)
    assert all(torch.equal(kept, keep[name]) for name, kept in Neuron().entries(masks).items())


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.84])
def test_the_sparsity_of_neurons_is_exact_over_layers(network, sparsity):
    weights, scores = parts(network)
    pools = Neuron().pools(weights, scores, None)
    keep = Neuron().fitted(GlobalThreshold()(pools, sparsity), pools)
    assert sum(int((~mask).sum()) for mask in keep.values()) == round(sparsity * 13)


def test_no_layer_loses_its_last_neuron(network):
    weights, scores = parts(network)
    pools = Neuron().pools(weights, scores, None)
    keep = Neuron().fitted(Uniform()(pools, 0.99), pools)
    assert [int(mask.sum()) for mask in keep.values()] == [1, 1]


def test_what_has_gone_is_not_the_best_whatever_it_scores():
    weight = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    pool = Neuron().pools({"a.weight": weight}, {"a.weight": torch.tensor([9.0, 5.0, 6.0])}, None)["a.weight"]
    assert pool.tolist() == [9.0, 5.0, torch.inf]


def test_a_layer_that_starts_at_zero_is_no_special_case():
    pool = Neuron().pools({"a.weight": torch.zeros(2, 2)}, {"a.weight": torch.zeros(2, 2)}, None)["a.weight"]
    assert pool.tolist() == [torch.inf, 0.0]


def test_nan_is_seen_even_in_the_best():
    pools = Neuron().pools({"a.weight": torch.ones(2, 2)}, {"a.weight": torch.tensor([1.0, torch.nan])}, None)
    with pytest.raises(ValueError, match="NaN"):
        Uniform()(pools, 0.5)
