import pytest
import torch

from lightning_optim.cost import Prices
from lightning_optim.cost.prices import Pool, Product, Width
from lightning_optim.pruning import Budget


def prices(**sizes):
    """A chain: each pool's channels meet the next one's, the last one's meet ten outputs."""
    names = list(sizes)
    ends = [*(Width(0.0, {name: 1.0}) for name in names[1:]), Width(10.0, {})]
    terms = tuple(Product(name, 1.0, (Width(0.0, {name: 1.0}), end)) for name, end in zip(names, ends, strict=True))
    return Prices("MACs", {name: Pool(size) for name, size in sizes.items()}, terms)


def scores(**sizes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(size, generator=generator) for name, size in sizes.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.35, 0.5, 0.8])
def test_the_budget_is_kept_and_used(sparsity):
    found = Budget().start(prices(a=32, b=48), multiple=1, highest=0.8)(scores(a=32, b=48), sparsity)
    spent = prices(a=32, b=48)({name: int(mask.sum()) for name, mask in found.items()})
    limit = (1 - sparsity) * prices(a=32, b=48).full
    assert limit - 70 < spent <= limit  # the smallest step costs less than 70


def test_the_lowest_scores_of_a_pool_go():
    values = scores(a=32, b=48)
    for name, mask in Budget().start(prices(a=32, b=48), multiple=1, highest=0.5)(values, 0.5).items():
        assert values[name][mask].min() > values[name][~mask].max()


def test_multiples_are_kept_and_the_least_share_stays():
    allocation = Budget(min_kept=0.25).start(prices(a=32, b=48), multiple=8, highest=0.85)
    counts = {name: int(mask.sum()) for name, mask in allocation(scores(a=32, b=48), 0.85).items()}
    assert all(count % 8 == 0 for count in counts.values())
    assert counts["a"] >= 8
    assert counts["b"] >= 16  # a quarter is 12, the next multiple 16


def test_what_has_gone_does_not_come_back():
    values = scores(a=32, b=48)
    values["a"][:20] = -torch.inf
    found = Budget().start(prices(a=32, b=48), multiple=1, highest=0.5)(values, 0.5)
    assert not found["a"][:20].any()


def test_a_pool_that_cannot_be_cut_is_paid_for_by_the_others():
    sizes = {"a": 32, "b": 48}
    found = Budget().start(prices(**sizes), multiple=1, highest=0.5)({"b": scores(**sizes)["b"]}, 0.5)
    assert prices(**sizes)({"b": int(found["b"].sum())}) <= 0.5 * prices(**sizes).full


def test_a_budget_below_the_floor_is_refused_with_the_floor():
    with pytest.raises(ValueError, match=r"0\.05 of the original MACs is below the floor of 0\.28"):
        Budget(min_kept=0.4).start(prices(a=10, b=10), multiple=1, highest=0.95)


def test_channels_of_no_importance_at_all_do_not_confuse_it():
    found = Budget().start(prices(a=8, b=8), multiple=1, highest=0.5)({"a": torch.zeros(8), "b": torch.zeros(8)}, 0.5)
    assert prices(a=8, b=8)({name: int(mask.sum()) for name, mask in found.items()}) <= 0.5 * prices(a=8, b=8).full


@pytest.mark.parametrize("min_kept", [0.0, 1.5])
def test_a_least_share_out_of_range_is_refused(min_kept):
    with pytest.raises(ValueError, match="min_kept"):
        Budget(min_kept=min_kept)


def test_scores_that_are_no_numbers_are_refused():
    values = scores(a=8, b=8)
    values["a"][2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        Budget().start(prices(a=8, b=8), multiple=1, highest=0.5)(values, 0.5)
