"""How much: progress through a window -> value."""

from abc import ABC, abstractmethod


class Schedule(ABC):
    """A value that changes as a window is walked through."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the value at ``progress`` in ``[0, 1]``."""
