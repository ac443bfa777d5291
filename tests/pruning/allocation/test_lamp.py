import pytest
import torch

from lightning_optim.pruning import LAMP


def scores():
    generator = torch.Generator().manual_seed(0)
    return {
        "small": 0.01 * torch.rand(6, 5, generator=generator),
        "large": 100.0 * torch.rand(40, generator=generator),
        "rounded": torch.rand(30, generator=generator).round(decimals=1),
    }


def kept_by_definition(given, drop):
    """Sort every layer, score each entry against the squares from its place on, sort all scores, keep the highest."""
    ranked = []
    for name, score in given.items():
        ascending = score.flatten().sort().values.double()
        for place, value in enumerate(ascending):
            ranked.append((float(value**2 / (ascending[place:] ** 2).sum()), name))
    ranked.sort()
    return {name: sum(entry[1] == name for entry in ranked[drop:]) for name in given}


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_each_layer_keeps_what_the_definition_says_and_the_sum_is_exact(sparsity):
    given, drop = scores(), round(sparsity * 100)
    masks = LAMP()(given, sparsity)
    assert sum(int((~mask).sum()) for mask in masks.values()) == drop
    assert {name: int(mask.sum()) for name, mask in masks.items()} == kept_by_definition(given, drop)


def test_scale_of_a_layer_does_not_matter():
    given = scores()
    scaled = {name: score * factor for (name, score), factor in zip(given.items(), (1e6, 1e-4, 3.0), strict=True)}
    one, other = LAMP()(given, 0.6), LAMP()(scaled, 0.6)
    assert all(torch.equal(one[name], other[name]) for name in given)


def test_the_lowest_of_each_layer_go_even_where_relative_scores_tie():
    given = {"a": torch.cat([torch.tensor([1e4]), 1.0 + torch.arange(500.0).flip(0) * 2e-7])}
    mask = LAMP()(given, 0.5)["a"]
    assert float(given["a"][mask].min()) >= float(given["a"][~mask].max())


def test_every_layer_keeps_its_best_entry_to_the_last():
    masks = LAMP()(scores(), 0.97)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def test_what_has_gone_falls_first_and_what_must_stay_stays():
    given = {"a": torch.tensor([-torch.inf, 5.0, 1.0, torch.inf]), "b": torch.tensor([3.0, 4.0])}
    masks = LAMP()(given, 0.5)
    assert masks["a"].tolist() == [False, True, False, True]
    assert masks["b"].tolist() == [False, True]


@pytest.mark.parametrize(("bad", "message"), [(-1.0, "at least 0, but those of a"), (torch.nan, "NaN")])
def test_scores_without_a_square_root_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        LAMP()({"a": torch.tensor([1.0, bad])}, 0.5)
