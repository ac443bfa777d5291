"""Factor of a term: a number, or a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_optim.schedule.base import Schedule

Factor = float | Schedule


def as_factor(value: Any, what: str) -> Factor:
    """Check a factor.

    Args:
        value: A number of at least 0, or a schedule.
        what: Names it in messages.

    Raises:
        TypeError: If it is of another kind.
        ValueError: If it is out of range.

    Example:
        >>> as_factor(2, "weight")
        2.0
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number or a schedule, got {type(value).__name__}")
    if not (value >= 0.0 and math.isfinite(value)):
        raise ValueError(f"{what} must be a number of at least 0, got {value}")
    return float(value)


def as_factors(value: Any, keys: Sequence[str], what: str, of: str) -> dict[str, Factor]:
    """Check the factors of several terms.

    Args:
        value: One factor for all of them, or one for each by its key.
        keys: Keys of the terms.
        what: Names a factor in messages.
        of: Names the terms in messages, in the plural.

    Raises:
        TypeError: If a factor is of another kind.
        ValueError: If one is out of range, or not each key has one.

    Example:
        >>> as_factors(0.5, ["a", "b"], "weight", "losses")
        {'a': 0.5, 'b': 0.5}
    """
    if not isinstance(value, Mapping):
        value = dict.fromkeys(keys, value)
    if set(value) != set(keys):
        raise ValueError(f"{what} names {sorted(value)}, but the {of} are {sorted(keys)}: give each its {what}")
    return {key: as_factor(value[key], f"{what} of {key!r}") for key in keys}


def factor_at(factor: Factor, progress: float) -> float:
    """Value of a factor at a progress in ``[0, 1]``.

    Example:
        >>> factor_at(0.5, progress=0.25)
        0.5
    """
    return factor(progress) if isinstance(factor, Schedule) else factor
