import pytest

from lightning_optim.schedule import Linear
from lightning_optim.schedule.factor import as_factor, as_factors, factor_at


def test_a_factor_is_a_number_or_a_schedule():
    assert factor_at(as_factor(2, "weight"), 0.5) == 2.0
    assert factor_at(as_factor(Linear(start=0.0, end=4.0), "weight"), 0.25) == 1.0


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_number_below_zero_or_none_at_all_is_refused(value):
    with pytest.raises(ValueError, match=f"weight of 'a' must be a number of at least 0, got {value}"):
        as_factors({"a": value}, ["a"], "weight", "losses")


def test_each_key_has_one():
    assert as_factors({"a": 1, "b": 2}, ["b", "a"], "weight", "losses") == {"b": 2.0, "a": 1.0}
    with pytest.raises(
        ValueError, match=r"weight names \['c'\], but the losses are \['a', 'b'\]: give each its weight"
    ):
        as_factors({"c": 1}, ["a", "b"], "weight", "losses")
    with pytest.raises(TypeError, match="must be a number or a schedule, got bool"):
        as_factor(True, "weight")
