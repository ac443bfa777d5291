import pytest
import torch
from torch import nn

from lightning_optim.pruning import LayerEvidence, Statistic, Wanda
from lightning_optim.pruning.evidence import measure
from lightning_optim.pruning.functional import mask_from_scores


def seen_of(layer, inputs, channel_dim, **more):
    (energy,) = [need for need in Wanda().needs if isinstance(need, Statistic)]
    total, count = measure(energy.term, inputs, channel_dim)
    return LayerEvidence(name="w", weight=layer.weight, totals={energy: total}, counts={energy: count}, **more)


def test_score_is_the_weight_times_the_norm_of_what_it_reads():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 3), torch.randn(6, 5, 4)
    score = Wanda(within="layer")(seen_of(layer, inputs, -1))
    for i in range(3):
        for j in range(4):
            norm = sum(float(x) ** 2 for x in inputs[..., j].flatten()) ** 0.5
            expected = abs(layer.weight[i, j].item()) * norm / 30**0.5  # 30 values of each input
            assert float(score[i, j]) == pytest.approx(expected, rel=1e-5)


def test_output_channels_of_a_grouped_convolution_read_their_own_group():
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(4, 6, 2, groups=2), torch.randn(3, 4, 5, 5)
    score = Wanda(within="layer")(seen_of(layer, inputs, 1))
    for i in range(6):
        for j in range(2):
            channel = 2 * (i // 3) + j
            expected = layer.weight[i, j].abs() * inputs[:, channel].square().mean().sqrt()
            torch.testing.assert_close(score[i, j], expected)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_within_outputs_each_loses_its_own_lowest(sparsity):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 5), torch.randn(20, 8)
    layer.weight.data[0] *= 100  # would keep everything, compared within the layer
    mask = mask_from_scores(Wanda()(seen_of(layer, inputs, -1)), sparsity)
    by_hand = layer.weight.abs() * inputs.norm(dim=0)
    for row, kept in zip(by_hand, mask, strict=True):
        lowest = row.argsort()[: int(8 * sparsity)]
        assert sorted((~kept).nonzero().flatten().tolist()) == sorted(lowest.tolist())


def test_half_precision_does_not_overflow():
    layer = nn.Linear(2, 1)
    score = Wanda(within="layer")(seen_of(layer, torch.full((3, 2), 1000.0, dtype=torch.float16), -1))
    torch.testing.assert_close(score, layer.weight.abs() * 1000)


def test_channels_are_not_compared_within_themselves():
    with pytest.raises(ValueError, match="set within='layer'"):
        Wanda()(seen_of(nn.Linear(2, 2), torch.ones(1, 2), -1, falls="channel"))


def test_another_comparison_is_refused():
    with pytest.raises(ValueError, match="within must be 'output' or 'layer', got 'row'"):
        Wanda(within="row")
