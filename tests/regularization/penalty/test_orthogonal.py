import pytest
import torch
from torch import nn

from lightning_optim.regularization import Orthogonal, Penalized


def cost(layer):
    return Orthogonal()(Penalized(weights={"weight": layer.weight}, layers={"weight": layer})).item()


def test_rows_are_output_channels_whatever_the_layout():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 2)
    turned = nn.ConvTranspose2d(3, 4, 2)
    turned.weight.data = conv.weight.data.transpose(0, 1).clone()
    rows = conv.weight.detach().flatten(1)
    by_hand = 0.0
    for i in range(4):
        for j in range(4):
            by_hand += (float((rows[i] * rows[j]).sum()) - (i == j)) ** 2
    assert cost(conv) == pytest.approx(by_hand, rel=1e-5)
    assert cost(turned) == pytest.approx(by_hand, rel=1e-5)


def test_groups_are_matrices_of_their_own():
    torch.manual_seed(0)
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    halves = [nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)]
    for half, part in zip(halves, grouped.weight.data.chunk(2), strict=True):
        half.weight.data = part
    assert cost(grouped) == pytest.approx(sum(map(cost, halves)), rel=1e-5)
    turned = nn.ConvTranspose2d(4, 6, 3, groups=2)
    parts = [nn.ConvTranspose2d(2, 3, 3), nn.ConvTranspose2d(2, 3, 3)]
    for half, part in zip(parts, turned.weight.data.chunk(2), strict=True):
        half.weight.data = part
    assert cost(turned) == pytest.approx(sum(map(cost, parts)), rel=1e-5)
