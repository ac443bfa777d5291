import torch
from torch import nn

from lightning_optim.regularization import Penalized, Slimming


def test_it_sums_the_sizes_of_scales_whatever_their_sign():
    scales = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5])}
    assert Slimming()(Penalized(weights=scales, layers={})).item() == 3.5
    assert isinstance(nn.SyncBatchNorm(2), Slimming.treatable)
    assert not isinstance(nn.LayerNorm(2), Slimming.treatable)
