"""Bayesian linear regression over options and pairs of options, for scores that are known by their ranks."""

# N known candidates, M others, D decisions, K targets

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import final

import numpy as np
from numpy.typing import NDArray

from lightning_optim.search.decision import Candidate
from lightning_optim.search.encoding import Encoding, Rows
from lightning_optim.search.space import SearchSpace

Floats = NDArray[np.float64]


def rank_normal(scores: Floats) -> Floats:
    """Normal quantiles of the ranks, equal scores at the middle of theirs (Blom, 1958, with offset 1/2).

    Args:
        scores: ``[N]``, higher is better.

    Example:
        >>> rank_normal(np.array([7.0, -1e9, 7.5])).round(2).tolist()
        [0.0, -0.97, 0.97]
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middles = (np.cumsum(counts) - counts / 2.0) / len(scores)
    return np.array([NormalDist().inv_cdf(middle) for middle in middles])[inverse]


def pairwise_kernel(ones: Rows, others: Rows, num_options: Rows, ordinal: Floats) -> Floats:
    """Covariance of scores that are sums of one term for each option and one for each pair of options.

    With ``s_d`` the similarity of two candidates in decision ``d`` (1 for the same option, 0 for others), the inner
    product of their one-hot features is ``sum s_d``, and that of their pairs of features ``sum s_d s_e`` over ``d <
    e``. Both count alike, and each is 1 for a candidate with itself. So features are never written out, and a space of
    many decisions costs no more than its rows.

    Args:
        ones: Codes ``[N, D]``, -1 where a decision is inactive.
        others: Codes ``[M, D]``.
        num_options: Of each decision ``[D]``.
        ordinal: Share of the similarity in each decision that falls linearly with the distance of two options in their
            list ``[D]``.

    Returns:
        Covariances ``[N, M]``.
    """
    total, squares = np.zeros((len(ones), len(others))), np.zeros((len(ones), len(others)))
    for one, other, options, share in zip(ones.T, others.T, num_options, ordinal, strict=True):
        distance = np.abs(one[:, None] - other)
        both = (one[:, None] >= 0) & (other >= 0)
        similar = (1.0 - share) * (distance == 0) + share * np.where(
            both, 1.0 - distance / max(options - 1, 1), distance == 0
        )
        total += similar
        squares += similar**2
    count = len(num_options)
    pairs = (total**2 - squares) / (count * (count - 1)) if count > 1 else total
    return 0.5 * total / count + 0.5 * pairs


@final
class PairwiseRegression:
    """Posterior of scores, given those of some candidates.

    Args:
        encoding: Of the space.
        rows: The known candidates ``[N, D]``.
        targets: Their scores ``[N, K]``, of about zero mean and unit variance; those of the last candidates may be
            missing, which then lower the deviation alone.
        noise: Variance of the targets that the terms do not explain, beside 1 that they do.
        ordinal: How far neighbours in a list of numbers are taken to be alike, in ``[0, 1]``.
    """

    def __init__(self, encoding: Encoding, rows: Rows, targets: Floats, *, noise: float, ordinal: float) -> None:
        self._encoding, self._codes = encoding, encoding.codes(rows)
        self._ordinal = np.where(encoding.is_ordinal, ordinal, 0.0)
        covariance = self._kernel(self._codes) + noise * np.eye(len(rows))
        known = len(targets)
        self._weights = np.linalg.solve(covariance[:known, :known], targets)
        self._inverse_factor = np.linalg.inv(np.linalg.cholesky(covariance))

    def mean_and_deviation(self, rows: Rows) -> tuple[Floats, Floats]:
        """Expected scores ``[M, K]`` and their standard deviations ``[M]``, noise left out."""
        cross = self._kernel(self._encoding.codes(rows))
        explained = (cross @ self._inverse_factor.T) ** 2
        deviation = np.sqrt(np.maximum(1.0 - explained.sum(axis=1), 1e-12))
        return cross[:, : len(self._weights)] @ self._weights, deviation

    def _kernel(self, codes: Rows) -> Floats:
        return pairwise_kernel(codes, self._codes, self._encoding.num_options, self._ordinal)


def smoothed_scores(space: SearchSpace, candidates: Sequence[Candidate], scores: Sequence[float]) -> list[float]:
    """Expect of each candidate what its options and pairs of options have scored in all of them.

    Scores of short trainings are noisy, and the best of a hundred owes its place to luck in part: the candidate that is
    best after smoothing is the better pick where what is judged in the end is a longer training. Scores are compared by
    their ranks, and the regression is that of ``PairwiseSurrogate``.

    Args:
        space: What there is to decide.
        candidates: At least one.
        scores: One per candidate, higher is better.

    Returns:
        One value per candidate, in units of normal quantiles: to compare with each other alone.

    Raises:
        ValueError: If there are more or fewer scores than candidates, or one is NaN.

    Example:
        >>> from lightning_optim.search import Decision
        >>> space = SearchSpace([Decision(name=name, options=("a", "b"), default=0) for name in "pq"])
        >>> expected = smoothed_scores(space, list(space), [0.0, 1.0, 1.0, 2.0])
        >>> max(range(4), key=expected.__getitem__)
        3
    """
    if len(candidates) != len(scores) or not candidates:
        raise ValueError(f"each of at least one candidate needs a score, got {len(candidates)} and {len(scores)}")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN: leave out candidates that were not measured")
    encoding = Encoding(space)
    rows = encoding.rows([space.canonical(candidate) for candidate in candidates])
    targets = rank_normal(np.asarray(scores, dtype=float))[:, None]
    mean, _ = PairwiseRegression(encoding, rows, targets, noise=0.1, ordinal=0.3).mean_and_deviation(rows)
    return [float(value) for value in mean[:, 0]]
