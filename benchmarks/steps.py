"""Training steps of several variants, timed side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks.common import quiet_trainer
from lightning_optim.demo import Classifier

WARMUP = 5


class Stopwatch(Callback):
    """CPU seconds of each step after the first ones."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        now = time.process_time()
        if self._last is not None and trainer.global_step > WARMUP:
            self.seconds.append(now - self._last)
        self._last = now


def take_turn(
    callbacks: Sequence[Callback], net: Callable[[], nn.Module], images: Tensor, labels: Tensor, batch_size: int
) -> list[float]:
    """Train a fresh net on each batch once, and return the CPU seconds of each step after the first ones."""
    torch.manual_seed(0)
    stopwatch, module = Stopwatch(), Classifier(net(), memory_format="contiguous")
    module.example_input_array = images[:1]
    trainer = quiet_trainer([stopwatch, *callbacks], max_epochs=1)
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size))
    return stopwatch.seconds


def seconds_of_steps(
    variants: Mapping[str, Callable[[], Sequence[Callback]]],
    net: Callable[[], nn.Module],
    shape: tuple[int, ...],
    *,
    classes: int = 10,
    batch_size: int,
    steps: int,
    rounds: int,
) -> dict[str, list[float]]:
    """Return the seconds of every variant's steps, on random images.

    Args:
        variants: Name -> makes the callbacks of one fit.
        net: Makes the net.
        shape: Shape of an image.
        classes: Number of classes.
        batch_size: Images of a step.
        steps: Timed steps of a turn.
        rounds: Turns of each variant.
    """
    images = torch.randn(batch_size * (WARMUP + steps), *shape)
    labels = torch.randint(0, classes, (len(images),))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        # Each round goes the other way, so that no variant always follows the same one.
        for name in list(variants) if turn % 2 == 0 else list(reversed(variants)):
            seconds[name] += take_turn(variants[name](), net, images, labels, batch_size)
    return seconds


def beside_plain(seconds: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Return the ratio of each variant's median step to that of ``plain``, and how much longer it is in ms."""
    plain = statistics.median(seconds["plain"])
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {name: (median / plain, 1e3 * (median - plain)) for name, median in medians.items()}
