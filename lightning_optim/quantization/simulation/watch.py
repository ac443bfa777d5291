"""Watch: what forward passes take note of."""

from __future__ import annotations

from enum import Enum
from typing import final


@final
class Watch(Enum):
    """Watch that forward passes keep."""

    NOTHING = "nothing"
    """They take note of nothing, and round what is known."""
    NEW = "new"
    """They record operators that are new, and observe activations that have no range."""
    ALL = "all"
    """They observe every activation, too."""
