"""Determinism: random numbers are a function of (seed, stage, epoch), so a killed run goes on to the same end."""

from __future__ import annotations

import hashlib
import random
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import RandomSampler
from typing_extensions import override


def seed_of(*parts: object) -> int:
    """Seed of 31 bits, the same for the same parts in any process.

    Example:
        >>> seed_of(0, "base", 1) == seed_of(0, "base", 1) != seed_of(0, "base", 2)
        True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def seed_everything(*parts: object) -> None:
    """Seed Python's, NumPy's and torch's generators with ``seed_of(*parts)``."""
    seed = seed_of(*parts)
    random.seed(seed)
    torch.manual_seed(seed)
    import numpy as np

    np.random.seed(seed)  # the generator that user code draws from


@final
class EpochSeed(Callback):
    """Callback that seeds every generator, and the order of a shuffled loader, at the start of each epoch.

    A loader's base seed is drawn before the first epoch's hook and after every other one's: so the generators are
    seeded again before the first batch. What loader workers draw is not covered.
    """

    def __init__(self, seed: int, stage: str) -> None:
        self._seed, self._stage = seed, stage

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reseed(trainer)
        loaders = trainer.train_dataloader
        for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
            sampler = getattr(loader, "sampler", None)
            if isinstance(sampler, RandomSampler):
                order = seed_of(self._seed, self._stage, trainer.current_epoch, "order")
                sampler.generator = torch.Generator().manual_seed(order)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._reseed(trainer)

    def _reseed(self, trainer: Trainer) -> None:
        seed_everything(self._seed, self._stage, trainer.current_epoch, trainer.global_rank)
