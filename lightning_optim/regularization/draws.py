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
    return torch.Generator().manual_seed(seed_for(*numbers))


def random_for(*parts: int | str) -> random.Random:
    """Python's generator, seeded by a hash of what is drawn and of numbers such as seed, batch and rank.

    Example:
        >>> random_for("box", 0, 3, 1).random() == random_for("box", 0, 3, 1).random()
        True
    """
    return random.Random(seed_for(*parts))


def seed_for(*parts: int | str) -> int:
    """Seed by a hash of what is drawn and of numbers such as seed, batch and rank; below ``2 ** 56``.

    Example:
        >>> seed_for("mask", 0, 3, 1) == seed_for("mask", 0, 3, 1), seed_for(0, 1) == seed_for(1, 0)
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
