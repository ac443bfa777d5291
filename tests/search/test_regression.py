import itertools

import numpy as np
import pytest

from lightning_optim.search import Condition, Decision, SearchSpace, smoothed_scores
from lightning_optim.search.encoding import Encoding, generator
from lightning_optim.search.regression import PairwiseRegression, pairwise_kernel, rank_normal

DRAWS = np.random.default_rng(0)
OPTIONS = (3, 2, 4)
SPACE = SearchSpace([Decision(name=f"d{n}", options=tuple("abcd"[:n]), default=0) for n in OPTIONS])
ENCODING = Encoding(SPACE)


def features(rows):
    """One-hot options and all products of two, written out, weighted so that each kind sums to 1 / 2."""
    hot = [np.eye(count)[column] for count, column in zip(OPTIONS, rows.T, strict=True)]
    pairs = [(a[:, :, None] * b[:, None]).reshape(len(rows), -1) for a, b in itertools.combinations(hot, 2)]
    return np.concatenate([np.sqrt(0.5 / 3) * np.hstack(hot), np.sqrt(0.5 / 3) * np.hstack(pairs)], axis=1)


def test_the_posterior_is_that_of_a_linear_regression_with_all_features_written_out():
    rows, others = DRAWS.integers(OPTIONS, size=(12, 3)), DRAWS.integers(OPTIONS, size=(7, 3))
    targets, noise = DRAWS.standard_normal((12, 2)), 0.3
    x, z = features(rows), features(others)
    precision = np.linalg.inv(x.T @ x / noise + np.eye(x.shape[1]))
    mean, deviation = PairwiseRegression(ENCODING, rows, targets, noise=noise, ordinal=0.3).mean_and_deviation(others)
    np.testing.assert_allclose(mean, z @ precision @ x.T @ targets / noise, atol=1e-10)
    np.testing.assert_allclose(deviation**2, ((z @ precision) * z).sum(axis=1), atol=1e-10)


def test_what_is_pending_lowers_the_deviation_alone():
    rows, others = DRAWS.integers(OPTIONS, size=(9, 3)), DRAWS.integers(OPTIONS, size=(7, 3))
    targets = DRAWS.standard_normal((6, 1))
    without = PairwiseRegression(ENCODING, rows[:6], targets, noise=0.1, ordinal=0.0).mean_and_deviation(others)
    beside = PairwiseRegression(ENCODING, rows, targets, noise=0.1, ordinal=0.0).mean_and_deviation(others)
    np.testing.assert_allclose(beside[0], without[0], atol=1e-12)
    assert (beside[1] <= without[1] + 1e-12).all()
    assert (beside[1] < without[1] - 1e-3).any()


def test_neighbours_in_the_list_are_alike_as_far_as_ordinal_says():
    rows = np.array([[0], [1], [2], [-1]])
    kernel = pairwise_kernel(rows, rows, np.array([3]), np.array([0.4]))
    np.testing.assert_allclose(kernel[0], [1.0, 0.2, 0.0, 0.0])
    np.testing.assert_allclose(kernel[3], [0.0, 0.0, 0.0, 1.0])
    assert np.linalg.eigvalsh(kernel).min() > -1e-12


def test_lists_of_numbers_alone_are_ordinal():
    lists = (("8", "16"), ("a", "b"), ("0.5", "1.0"), ("3", "pool"))
    space = SearchSpace([Decision(name=str(options), options=options, default=0) for options in lists])
    assert Encoding(space).is_ordinal.tolist() == [True, False, True, False]


def test_equal_scores_have_equal_quantiles_and_refused_ones_the_lowest():
    quantiles = rank_normal(np.array([1.0, -np.inf, 1.0, -np.inf, 5.0]))
    assert quantiles[0] == quantiles[2]
    assert quantiles[1] == quantiles[3] == quantiles.min()
    assert rank_normal(np.array([3.0])).tolist() == [0.0]


def test_smoothing_finds_the_best_behind_the_noise():
    space = SearchSpace([Decision(name=name, options=("a", "b", "c"), default=0) for name in "pqrst"])
    candidates = list(space)
    true = np.array([sum(candidate.values()) for candidate in candidates], dtype=float)
    raw, smooth = [], []
    for seed in range(10):
        noisy = true + 2.0 * np.random.default_rng(seed).standard_normal(len(true))
        raw.append(true[noisy.argmax()])
        smooth.append(true[np.argmax(smoothed_scores(space, candidates, list(noisy)))])
    assert np.mean(smooth) > np.mean(raw)
    with pytest.raises(ValueError, match="a score is NaN"):
        smoothed_scores(space, candidates[:1], [float("nan")])
    with pytest.raises(ValueError, match="needs a score, got 2 and 1"):
        smoothed_scores(space, candidates[:2], [1.0])


def test_rows_are_canonical_as_the_space_has_it_and_mutations_change_one_active_decision():
    held = (Condition(decision="depth", options=(1, 2)),)
    space = SearchSpace([
        Decision(name="depth", options=("0", "1", "2"), default=2),
        Decision(name="kernel", options=("3", "5"), default=1, conditions=held),
        Decision(name="only", options=("a",), default=0),
        Decision(name="inner", options=("a", "b"), default=0, conditions=(Condition(decision="kernel", options=(0,)),)),
    ])  # fmt: skip
    encoding, draws = Encoding(space), generator(0, "test")
    rows = encoding.sample(200, draws)
    assert {tuple(row) for row in rows.tolist()} == {tuple(candidate.values()) for candidate in space}
    for row, active in zip(rows, encoding.active(rows), strict=True):
        names = {decision.name for decision in space.active(encoding.candidate(row))}
        assert [decision.name in names for decision in space.decisions] == active.tolist()
    for before, after in zip(rows, encoding.mutated(rows, draws), strict=True):
        old, new = encoding.candidate(before), encoding.candidate(after)
        assert new == space.canonical(new)
        both = {entry.name for entry in space.active(old)} & {entry.name for entry in space.active(new)}
        assert sum(old[name] != new[name] for name in both) == 1
    assert len(encoding.new(rows, rows[:1])) == space.num_candidates - 1
