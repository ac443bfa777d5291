import pytest

from lightning_optim.cost.fit import fit_factors
from lightning_optim.errors import LatencyError


def test_factors_are_found_and_none_is_below_zero():
    rows = [[1.0, 5.0, 1.0], [2.0, 1.0, 1.0], [4.0, 2.0, 1.0], [8.0, 1.0, 1.0]]
    assert fit_factors(rows, [3 * a + 0.5 * b + 2 for a, b, _ in rows]) == pytest.approx([3.0, 0.5, 2.0])
    assert min(fit_factors(rows, [3 * a - 0.5 * b + 2 for a, b, _ in rows])) >= 0.0
    assert fit_factors(rows[:2], [None, 4.0])[0] >= 0.0


def test_a_network_that_runs_at_no_size_is_refused():
    with pytest.raises(LatencyError, match="none of the sizes"):
        fit_factors([[1.0, 1.0]], [None])
