import pytest

from lightning_optim.errors import cause_of, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("too large\nadvice"), "too large"),
        (ValueError("\n\n too large"), "too large"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_reason_is_one_line_even_where_there_is_no_message(error, reason):
    assert reason_of(error) == reason


def test_a_cause_is_the_innermost_one():
    outer, inner = RuntimeError("pages"), ValueError("\n too large \n advice")
    outer.__cause__ = inner
    assert cause_of(outer) == "ValueError: too large"
    assert cause_of(KeyError()) == "KeyError: no message"
