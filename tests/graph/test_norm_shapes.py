"""Norms of tensors without content give the shapes, and refuse what the real ones refuse."""

import pytest
import torch
from torch import nn

from lightning_optim.graph.norm_shapes import NormShapes

NORMS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm1d(4, affine=False),
    nn.BatchNorm1d(4, track_running_stats=False),
    nn.LayerNorm(4),
    nn.LayerNorm((6, 4), elementwise_affine=False),
    nn.LayerNorm(4, bias=False),
    nn.GroupNorm(2, 4),
    nn.GroupNorm(3, 6, affine=False),
]
SHAPES = [(2, 4, 4), (2, 6, 4), (2, 4, 6), (2, 3, 4), (2, 4), (2, 6)]


def outcome(norm, batch):
    try:
        output = norm(batch)
    except (RuntimeError, ValueError):
        return None
    return output.shape, output.dtype, output.device


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_answers_are_those_of_the_real_norm(norm, training):
    hollow = norm.train(training).to("meta")
    for shape in SHAPES:
        batch = torch.empty(shape, device="meta")
        wanted = outcome(hollow, batch)
        with NormShapes():
            assert outcome(hollow, batch) == wanted, shape
