import pytest
import torch
from torch import nn

from lightning_optim.regularization import L2, Penalized


def test_it_is_half_the_sum_of_all_squares():
    weights = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([[0.5]])}
    assert L2()(Penalized(weights=weights, layers={})).item() == (1.0 + 4.0 + 0.25) / 2


def test_biases_and_scales_are_looked_at_if_all_are_asked_for():
    layers = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU()
    assert [L2().parameter_names(layer) for layer in layers] == [["weight"], [], []]
    assert [L2(parameters="all").parameter_names(layer) for layer in layers] == [["weight", "bias"]] * 2 + [[]]
    with pytest.raises(ValueError, match="'matrices' or 'all', got 'some'"):
        L2(parameters="some")
