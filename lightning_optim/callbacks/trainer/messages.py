"""Messages of the callbacks, shown as Lightning shows its own."""

from __future__ import annotations

import logging
import time
from typing import final

from lightning.pytorch import Trainer

MESSAGES = logging.getLogger("lightning.pytorch.lightning_optim")
"""Logger below Lightning's: whoever silences Lightning's messages silences these, too."""

SECONDS = 5.0
"""Time between two messages about work that takes long."""


def tell(trainer: Trainer, text: str) -> None:
    """Log a line once, whatever the number of ranks."""
    if trainer.is_global_zero:
        MESSAGES.info(text)


@final
class Pace:
    """Pace of messages about work that takes long: none for what is over at once, then one every few seconds.

    Args:
        seconds: Time between two messages, and before the first.

    Example:
        >>> Pace().is_due()
        False
        >>> Pace(seconds=0.0).is_due()
        True
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for a message; if so, the next one waits as long again."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
