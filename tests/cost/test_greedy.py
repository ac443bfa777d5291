import itertools
import random
import time
from dataclasses import replace

from lightning_optim.cost import Prices
from lightning_optim.cost.curve import Curve
from lightning_optim.cost.greedy import most_important
from lightning_optim.cost.prices import Grid, Pool, Product, Width


def random_case(draw):
    """Three pools of two to six channels, four operators between pairs of them."""
    sizes = {pool: draw.randint(2, 6) for pool in "abc"}
    terms = []
    for _ in range(4):
        left, right = draw.sample("abc", 2)
        widths = (Width(draw.randint(0, 2), {left: 1.0}), Width(0.0, {right: 1.0}))
        terms.append(Product("op", draw.choice([1.0, 3.0, 9.0, 20.0]), widths))
    prices = Prices("MACs", {pool: Pool(size) for pool, size in sizes.items()}, tuple(terms))
    importance = {
        pool: [0.0, *itertools.accumulate(sorted((draw.random() for _ in range(size)), reverse=True))]
        for pool, size in sizes.items()
    }
    return prices, importance, {pool: list(range(1, size + 1)) for pool, size in sizes.items()}


def best_of_all(prices, importance, allowed_counts, limit):
    counts = (dict(zip(allowed_counts, chosen, strict=True)) for chosen in itertools.product(*allowed_counts.values()))
    kept = (sum(importance[pool][n] for pool, n in found.items()) for found in counts if prices(found) <= limit)
    return max(kept, default=None)


def test_most_choices_are_the_best_of_all_and_none_is_far_from_it():
    draw, shares = random.Random(0), []
    for share in (0.2, 0.4, 0.6, 0.8) * 25:
        prices, importance, allowed_counts = random_case(draw)
        limit = share * prices.full
        best = best_of_all(prices, importance, allowed_counts, limit)
        found = most_important(importance, allowed_counts, prices, limit)
        if best is not None:
            assert prices(found) <= limit
            shares.append(sum(importance[pool][n] for pool, n in found.items()) / best)
    assert len(shares) > 90
    assert sum(share > 1 - 1e-9 for share in shares) / len(shares) >= 0.85
    assert sum(shares) / len(shares) >= 0.99
    assert min(shares) >= 0.85


def test_nothing_goes_while_the_budget_holds_everything():
    prices, importance, allowed_counts = random_case(random.Random(1))
    assert most_important(importance, allowed_counts, prices, prices.full) == prices.sizes


def test_a_flat_of_a_measured_latency_is_crossed():
    terms = (Grid("conv", (Width(0.0, {"a": 1.0}),), ((1.0, 4.0, 8.0),), (1.0, 4.0, 4.0)),)
    prices = Prices("seconds", {"a": Pool(8)}, terms)
    importance = {"a": [float(n) for n in range(9)]}
    assert most_important(importance, {"a": list(range(1, 9))}, prices, 3.0) == {"a": 3}


def test_only_allowed_counts_are_chosen():
    prices, importance, _ = random_case(random.Random(2))
    allowed_counts = {pool: [1, size] for pool, size in prices.sizes.items()}
    found = most_important(importance, allowed_counts, prices, 0.5 * prices.full)
    assert all(count in allowed_counts[pool] for pool, count in found.items())


def test_lowest_counts_are_the_answer_where_nothing_fits():
    prices, importance, allowed_counts = random_case(random.Random(3))
    assert most_important(importance, allowed_counts, prices, 0.0) == dict.fromkeys("abc", 1)


def test_a_deep_network_is_settled_in_a_moment():
    names = [f"conv{index}" for index in range(20)]
    terms = tuple(
        Product("conv", 9.0, (Width(0.0, {left: 1.0}), Width(0.0, {right: 1.0})))
        for left, right in itertools.pairwise(names)
    )
    prices = Prices("MACs", {name: Pool(256) for name in names}, terms)
    draw = random.Random(0)
    importance = {
        name: [0.0, *itertools.accumulate(sorted((draw.random() for _ in range(256)), reverse=True))] for name in names
    }
    began = time.process_time()
    found = most_important(importance, {name: list(range(1, 257)) for name in names}, prices, 0.3 * prices.full)
    assert time.process_time() - began < 20.0  # under a second alone on a core; all combinations would take for ever
    assert 0.295 * prices.full < prices(found) <= 0.3 * prices.full


def test_a_limit_is_kept_in_what_the_curve_reads():
    draw = random.Random(4)
    for share in (0.4, 0.5, 0.7, 0.9, 1.0):
        prices, importance, allowed_counts = random_case(draw)
        whole = prices.full
        bent = replace(prices, curve=Curve((0.5 * whole, whole), (0.7 * whole, 0.9 * whole)))
        limit = share * bent.full
        found = most_important(importance, allowed_counts, bent, limit * (1 + 1e-12))
        assert bent(found) <= limit * (1 + 1e-9)
        assert found == most_important(importance, allowed_counts, prices, bent.curve.inverse(limit) * (1 + 1e-12))
