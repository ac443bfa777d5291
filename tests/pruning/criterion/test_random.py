import pytest
import torch

from lightning_optim.pruning import LayerEvidence, Random


def score(seed=0, name="a.weight", size=1000):
    return Random(seed=seed)(LayerEvidence(name=name, weight=torch.zeros(size)))


def test_numbers_are_a_function_of_seed_and_name_and_move_no_other():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = score()
    torch.manual_seed(5)
    assert torch.equal(one, score())
    torch.manual_seed(3)
    score()
    assert torch.equal(torch.rand(1), expected)


def test_seeds_and_layers_differ():
    drawn = [score(), score(seed=1), score(name="b.weight")]
    for one in range(3):
        for other in range(one):
            assert abs(torch.corrcoef(torch.stack([drawn[one], drawn[other]]))[0, 1]) < 0.15


def test_numbers_are_uniform():
    drawn = score(size=20000)
    counts = torch.histc(drawn, 10, 0.0, 1.0)
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        Random(seed=-1)
