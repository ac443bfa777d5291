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
from collections.abc import Callable

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.common import parser_for, quiet
from benchmarks.steps import WARMUP, seconds_of_steps
from lightning_optim.demo import ResidualNet

CLASSES, SIDE = 10, 16


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


def measure(batch_size: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every variant's steps."""
    variants = {
        name: (lambda build=build: [] if build is None else [build(batch_size)]) for name, build in VARIANTS.items()
    }
    shape = (1, SIDE, SIDE)
    return seconds_of_steps(variants, ResidualNet, shape, batch_size=batch_size, steps=steps, rounds=rounds)


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
