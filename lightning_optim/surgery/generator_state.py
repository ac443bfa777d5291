"""State of random numbers: of torch, on the CPU and on the accelerator that a model is on, of numpy and of Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy
import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class GeneratorState:
    """State of the generators that operators of torch draw from, and code that uses numpy or Python's ``random``.

    Args:
        device: A device whose generator counts beside the CPU's.
        cpu: State of the CPU's generator.
        own: State of the device's own; ``None`` for the CPU.
        others: States of numpy's and of Python's global generators.

    Example:
        >>> state = GeneratorState.of(torch.device("cpu"))
        >>> first = torch.rand(2)
        >>> state.restore()
        >>> bool((torch.rand(2) == first).all())
        True
    """

    device: torch.device
    cpu: Tensor
    own: Tensor | None
    others: tuple[Any, Any]

    @classmethod
    def of(cls, device: torch.device) -> GeneratorState:
        """Read the state as it is now."""
        own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), own, (numpy.random.get_state(), random.getstate()))

    def restore(self) -> None:
        """Let what is drawn next be what was drawn after this state was read."""
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.cuda.set_rng_state(self.own, self.device)
        numpy.random.set_state(self.others[0])
        random.setstate(self.others[1])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context in which operators draw from generators that begin at a seed; afterwards they go on as before.

    Args:
        seed: At least 0.
        device: A device whose generator counts beside the CPU's.

    Example:
        >>> with seeded(3, torch.device("cpu")):
        ...     first = torch.rand(2)
        >>> with seeded(3, torch.device("cpu")):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    before = GeneratorState.of(device)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        before.restore()
