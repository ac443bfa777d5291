import pytest

from lightning_optim.report.wording import say_bytes, say_count, say_factor, say_milliseconds, say_points


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (999.6, "1.00 k"), (99_960, "100 k"), (1_500_000_000, "1.50 G")]
)
def test_counts_round_into_the_next_prefix(count, text):
    assert say_count(count) == text


def test_bytes_milliseconds_and_points():
    assert [say_bytes(size) for size in (0, 1000, 12_345_678)] == ["0 B", "1.00 kB", "12.3 MB"]
    assert [say_milliseconds(value) for value in (0.04, 1.0, 100.4)] == ["0.040", "1.00", "100"]
    assert say_points(0.5, 0.49999999) in ("-0.00", "+0.00")


def test_a_factor_of_nothing_is_left_out():
    assert say_factor(1.0, None) == say_factor(None, 1.0) == say_factor(1.0, 0.0) == ""
