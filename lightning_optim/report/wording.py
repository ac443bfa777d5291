"""Numbers as people read them."""

from __future__ import annotations

from lightning_optim.cost.turns import Spread


def say_count(count: float) -> str:
    """Number of three significant digits with a decimal prefix.

    Example:
        >>> say_count(1234567), say_count(999), say_count(287_000)
        ('1.23 M', '999', '287 k')
    """
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{_three_digits(count / size)} {prefix}"
    return f"{count:.0f}"


def say_bytes(size: int) -> str:
    """Bytes with a decimal prefix (1 kB is 1000 bytes).

    Example:
        >>> say_bytes(86_421), say_bytes(512)
        ('86.4 kB', '512 B')
    """
    text = say_count(size)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def say_milliseconds(latency: float | None) -> str:
    """Milliseconds with three significant digits; a dash for what was not measured.

    Example:
        >>> say_milliseconds(0.1234), say_milliseconds(12.34), say_milliseconds(None)
        ('0.123', '12.3', '–')
    """  # noqa: RUF002  # the dash that stands for nothing
    return "–" if latency is None else _three_digits(latency)  # noqa: RUF001  # the dash that stands for nothing


def say_percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as a percentage; a dash for what was not measured, and 100 for nothing less than all.

    Example:
        >>> say_percent(0.9844), say_percent(0.999999), say_percent(1.0, digits=0)
        ('98.44 %', '99.99 %', '100 %')
    """
    if fraction is None:
        return "–"  # noqa: RUF001  # the dash that stands for nothing
    percent = 100.0 * fraction if fraction >= 1.0 else min(100.0 * fraction, 100.0 - 10.0**-digits)
    return f"{percent:.{digits}f} %"


def say_factor(base: float | None, value: float | None) -> str:
    """How many times smaller ``value`` is than ``base``; empty if one of them was not measured.

    Example:
        >>> say_factor(120.0, 10.0), say_factor(1.0, 3.0), say_factor(None, 3.0)
        ('12.0×', '0.33×', '')
    """  # noqa: RUF002  # the sign for times
    if base is None or not value:
        return ""
    return say_gain(base / value)


def say_gain(factor: float) -> str:
    """How many times smaller or faster.

    Example:
        >>> say_gain(2.63), say_gain(0.5)
        ('2.6×', '0.50×')
    """  # noqa: RUF002  # the sign for times
    return f"{factor:.1f}×" if factor >= 1.0 else f"{factor:.2f}×"  # noqa: RUF001  # the sign for times


def say_spread(spread: Spread) -> str:
    """Quartiles of a ratio of times.

    Example:
        >>> say_spread(Spread(2.41, 2.5, 2.58))
        '2.41 to 2.58'
    """
    return f"{spread.low:.2f} to {spread.high:.2f}"


def say_points(base: float, value: float) -> str:
    """A change of an accuracy in percentage points.

    Example:
        >>> say_points(0.9844, 0.9822), say_points(0.5, 0.5)
        ('-0.22', '+0.00')
    """
    return f"{100 * (value - base) + 0.0:+.2f}"


def _three_digits(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"
