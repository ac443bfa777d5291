"""What does a training step cost under each callback, beside the plain step?

    python -m benchmarks.overhead [--batch-size 64] [--steps 10] [--rounds 10]

Every variant trains the same residual net on the same random images, in turns within one process on one thread. A
step is timed in CPU time, from the end of one batch to the end of the next; the first steps of each turn are left out.
``ratio`` divides medians. ``mean_ratio`` divides means: it shows rare costly steps, and is noisier. ``control`` is the
plain step once more: how far it lies from 1 is the noise.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks.common import parser_for, quiet, quiet_trainer
from lightning_optim.demo import Classifier, ResidualNet

CLASSES, SIDE, WARMUP = 10, 16, 5


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


class FreeTeacher(nn.Module):
    """Answers at no cost, so that what is left is the callback's own."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.randn(batch_size, CLASSES))

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


def prune(batch_size: int) -> Callback:
    """Single weights at 80 % sparsity, which is reached before the timed steps: what is left is to hold the masks."""
    from lightning_optim import PruningScheduler, Window
    from lightning_optim.schedule import Cubic

    return PruningScheduler(schedule=Cubic(end=0.8), window=Window(end=WARMUP - 1, unit="step"))


def distil_free(batch_size: int) -> Callback:
    """Soft targets from a teacher that costs nothing."""
    from lightning_optim import DistillationTeacher

    return DistillationTeacher(teacher=FreeTeacher(batch_size))


def distil_real(batch_size: int) -> Callback:
    """Soft targets from a teacher of the student's own size."""
    from lightning_optim import DistillationTeacher

    return DistillationTeacher(teacher=ResidualNet())


def quantize(batch_size: int) -> Callback:
    """Simulated int8 weights and activations."""
    from lightning_optim import QATFakeQuant

    return QATFakeQuant()


def search(batch_size: int) -> Callback:
    """A supernet whose candidate costs what the operation beside it costs."""
    from lightning_optim import NASSupernet, Targets
    from lightning_optim.nas import OperationChoice

    def candidate() -> nn.Module:
        return nn.Conv2d(32, 32, 3, padding=1, bias=False)

    targets = Targets(include=("net.layers.0.conv*",))
    return NASSupernet(space={"operation": OperationChoice(targets=targets, candidates={"other": candidate})})


VARIANTS: dict[str, Callable[[int], Callback] | None] = {
    "plain": None,
    "control": None,
    "pruning masks": prune,
    "distillation, free teacher": distil_free,
    "distillation, equal teacher": distil_real,
    "quantization simulated": quantize,
    "supernet": search,
}


def take_turn(build: Callable[[int], Callback] | None, batch_size: int, steps: int) -> list[float]:
    """Train a fresh net for a few steps and return the CPU seconds of each."""
    torch.manual_seed(0)
    images = torch.randn(batch_size * (WARMUP + steps), 1, SIDE, SIDE)
    labels = torch.randint(0, CLASSES, (len(images),))
    stopwatch = Stopwatch()
    trainer = quiet_trainer([stopwatch] if build is None else [stopwatch, build(batch_size)], max_epochs=1)
    module = Classifier(ResidualNet())
    module.example_input_array = images[:1]
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size))
    return stopwatch.seconds


def measure(batch_size: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every variant's steps."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(rounds):
        # Each round goes the other way, so that no variant always follows the same one.
        for name in list(VARIANTS) if turn % 2 == 0 else list(reversed(VARIANTS)):
            seconds[name] += take_turn(VARIANTS[name], batch_size, steps)
    return seconds


def summarize(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the figures of each variant beside the plain step."""
    median, mean = statistics.median(seconds["plain"]), statistics.fmean(seconds["plain"])
    return {
        name: {
            "ms": round(1e3 * statistics.median(times), 3),
            "extra_ms": round(1e3 * (statistics.median(times) - median), 3),
            "ratio": round(statistics.median(times) / median, 4),
            "mean_ratio": round(statistics.fmean(times) / mean, 4),
        }
        for name, times in seconds.items()
    }


def show(figures: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table(title="CPU time of a training step")
    table.add_column("step")
    for column in ("median ms", "extra ms", "ratio", "mean ratio"):
        table.add_column(column, justify="right")
    for name, row in figures.items():
        table.add_row(
            name, f"{row['ms']:.2f}", f"{row['extra_ms']:+.2f}", f"{row['ratio']:.3f}", f"{row['mean_ratio']:.3f}"
        )
    Console().print(table)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--batch-size", type=int, default=64, help="images of a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each variant")
    options = parser.parse_args()
    quiet()
    figures = summarize(measure(options.batch_size, options.steps, options.rounds))
    show(figures)
    settings = vars(options) | {"torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps({"benchmark": "overhead", "settings": settings, "variants": figures}))


if __name__ == "__main__":
    main()
