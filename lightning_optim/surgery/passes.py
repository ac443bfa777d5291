"""Passes that repeat what has run already, and of which nothing is taken note."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_optim.surgery.torch_private import is_recomputing

_is_repeating = False


def is_repeating() -> bool:
    """Whether what runs is a training step that has run already, with the same batch."""
    return _is_repeating


def is_seen_again() -> bool:
    """Whether what runs has run already: in a backward (activation checkpointing), or in a step that is repeated."""
    return is_recomputing() or is_repeating()


@contextmanager
def repeating() -> Iterator[None]:
    """Context of a training step that runs once more: what was open before it takes note of nothing inside.

    Example:
        >>> with repeating():
        ...     is_repeating()
        True
        >>> is_repeating()
        False
    """
    global _is_repeating  # noqa: PLW0603  # one step runs at a time, and hooks must know without being told
    before, _is_repeating = _is_repeating, True
    try:
        yield
    finally:
        _is_repeating = before
