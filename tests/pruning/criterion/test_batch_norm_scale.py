import pytest
import torch
from torch import nn

from lightning_optim.pruning import BatchNormScale, LayerEvidence


def test_score_is_the_size_of_the_scale():
    norm = nn.BatchNorm2d(3)
    norm.weight.data = torch.tensor([0.5, -2.0, 0.0])
    score = BatchNormScale()(LayerEvidence(name="conv.weight", weight=torch.ones(3, 2, 1, 1), norm=norm))
    assert score.tolist() == [0.5, 2.0, 0.0]
    assert not score.requires_grad


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d(3, affine=False)], ids=["no norm", "no scale"])
def test_a_layer_without_a_scale_is_named(norm):
    with pytest.raises(ValueError, match=r"output of head\.weight.*targets\.exclude"):
        BatchNormScale()(LayerEvidence(name="head.weight", weight=torch.ones(3, 2), norm=norm))
