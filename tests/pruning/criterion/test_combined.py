import pytest
import torch
from scipy.stats import rankdata

from lightning_optim.pruning import BatchNormScale, Combined, LayerEvidence, Magnitude, MeanActivation, Random, Taylor


def seen(weight, **more):
    norm = torch.nn.BatchNorm2d(weight.shape[0])
    norm.weight.data = torch.arange(weight.shape[0], dtype=torch.float32) + 1
    return LayerEvidence(name="w", weight=weight, norm=norm, **more)


def both(**settings):
    return Combined(criteria={"size": Magnitude(), "chance": Random(seed=4)}, **settings)


@pytest.fixture
def weight():
    torch.manual_seed(0)
    drawn = torch.randn(4, 3, 2)
    drawn[0] = 0.0  # entries that tie
    return drawn


def parts(weight):
    return [Magnitude()(seen(weight)), Random(seed=4)(seen(weight))]


@pytest.mark.parametrize("combine", ["mean", "maximum"])
def test_ranks_are_weighted_and_put_together(weight, combine):
    one, other = (torch.from_numpy(rankdata(part.flatten()).reshape(4, 3, 2)) / 24 for part in parts(weight))
    score = both(weights={"size": 3.0}, combine=combine)(seen(weight))
    expected = (3 * one + other) / 4 if combine == "mean" else torch.maximum(3 * one, other)
    torch.testing.assert_close(score, expected)


@pytest.mark.parametrize("combine", ["mean", "maximum"])
def test_scores_over_their_mean_are_weighted_and_put_together(weight, combine):
    one, other = (part / (part.abs().sum() / 24) for part in parts(weight))
    score = both(weights={"chance": 0.5}, normalise="mean", combine=combine)(seen(weight))
    expected = (one + 0.5 * other) / 1.5 if combine == "mean" else torch.maximum(one, 0.5 * other)
    torch.testing.assert_close(score, expected)


def test_scales_do_not_count():
    torch.manual_seed(0)
    weight = torch.randn(4, 3)
    for normalise in ("rank", "mean"):
        torch.testing.assert_close(
            both(normalise=normalise)(seen(weight)), both(normalise=normalise)(seen(1e3 * weight))
        )


def test_a_score_of_the_channel_is_that_of_each_of_its_weights(weight):
    criterion = Combined(criteria={"size": Magnitude(), "scale": BatchNormScale()})
    alone = torch.from_numpy(rankdata(weight.abs().flatten()).reshape(4, 3, 2)) / 24
    of_channel = torch.from_numpy(rankdata([[channel] * 6 for channel in range(4)]).reshape(4, 3, 2)) / 24
    torch.testing.assert_close(criterion(seen(weight)), (alone + of_channel) / 2)


def test_where_channels_fall_each_criterion_is_summed_over_them_first(weight):
    criterion = Combined(criteria={"size": Magnitude(), "scale": BatchNormScale()})
    sums = torch.from_numpy(rankdata(weight.abs().flatten(1).sum(1))) / 4
    expected = (sums + torch.tensor([0.25, 0.5, 0.75, 1.0])) / 2
    torch.testing.assert_close(criterion(seen(weight, falls="channel")), expected)


def test_it_needs_what_its_parts_need():
    nested = Combined(criteria={"a": Combined(criteria={"b": Taylor()}), "c": MeanActivation()})
    assert nested.needs == Taylor().needs | MeanActivation().needs


def test_scores_that_are_not_numbers_are_named():
    with pytest.raises(ValueError, match="'size' scores of w are NaN"):
        both()(seen(torch.tensor([[1.0, torch.nan]])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criteria": {}}, "at least one criterion"),
        ({"weights": {"sise": 1.0}}, r"'sise', but criteria are \['chance', 'size'\]"),
        ({"weights": {"size": -1.0}}, "at least 0, got -1.0 for 'size'"),
        ({"weights": {"size": 0, "chance": 0}}, "above 0, got only zeros"),
        ({"normalise": "max"}, "normalise must be 'rank' or 'mean', got 'max'"),
        ({"combine": "sum"}, "combine must be 'mean' or 'maximum', got 'sum'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Combined(**{"criteria": {"size": Magnitude(), "chance": Random()}, **settings})
