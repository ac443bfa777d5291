import torch
from torch import nn

from lightning_optim.regularization import L1, Penalized


def test_it_sums_over_all_weights_and_looks_at_matrices_alone():
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.MultiheadAttention(4, 2))
    assert [L1().parameter_names(layer) for layer in net] == [["weight"], [], ["in_proj_weight"]]
    weights = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([[0.5]])}
    assert L1()(Penalized(weights=weights, layers={})).item() == 1.0 + 2.0 + 0.5
