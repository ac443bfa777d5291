import pytest
import torch
from torch import nn

from lightning_optim.regularization import Penalized, SpectralNorm


def test_it_sums_half_the_squared_norms_of_layers():
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 4, 2), "b": nn.Linear(5, 3), "c": nn.Conv1d(4, 4, 3, groups=4)}
    weights = {name: layer.weight for name, layer in layers.items()}
    norms = [torch.linalg.matrix_norm(layers[name].weight.flatten(1), 2).item() for name in "ab"]
    norms.append(max(torch.linalg.vector_norm(row).item() for row in layers["c"].weight))
    found = SpectralNorm(iterations=500)(Penalized(weights=weights, layers=layers))
    assert found.item() == pytest.approx(sum(norm * norm for norm in norms) / 2, rel=1e-4)


def test_no_iteration_is_refused():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        SpectralNorm(iterations=0)
