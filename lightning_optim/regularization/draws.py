"""Random draws that are a function of seed, batch and rank: equal in a resumed fit."""

from __future__ import annotations

import hashlib
import random

import torch


def generator_for(*numbers: int) -> torch.Generator:
    """Generator on the CPU, seeded by a hash of numbers such as seed, batch and rank.

    Example:
        >>> one, other = generator_for(0, 3, 1), generator_for(0, 3, 1)
        >>> bool(torch.rand(1, generator=one) == torch.rand(1, generator=other))
        True
    """
    return torch.Generator().manual_seed(_seed_of(numbers))


def random_for(*parts: int | str) -> random.Random:
    """Python's generator, seeded by a hash of what is drawn and of numbers such as seed, batch and rank.

    Example:
        >>> random_for("box", 0, 3, 1).random() == random_for("box", 0, 3, 1).random()
        True
    """
    return random.Random(_seed_of(parts))


def _seed_of(parts: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
