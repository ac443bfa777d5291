"""Base of all schedules: progress through a window -> value."""

from abc import ABC, abstractmethod


class Schedule(ABC):
    """Schedule: a value that depends on the progress through a window."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the value at ``progress`` in ``[0, 1]``."""
