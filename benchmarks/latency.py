"""Does a report's latency hold while the machine is busy? The same files, idle and beside other work.

    python -m benchmarks.latency [--seconds 6] [--rounds 3] [--beside spin stream]

A residual net, one of half its channels and that one in int8 are timed as a report times its stages: CPU time of the
calling thread, call by call in turns, at batches of 1 and 32. Then the same beside two processes that spin and beside
two that stream memory. ``speedup`` is the CPU time of the first over that of the others, ``wall_speedup`` the same on
the clock. ``shift`` is how far the farthest of those that a report would decide lies from the idle median, as a share
of it; ``undecided`` counts the others. ``control`` is the first file loaded once more: how far it lies from 1 is the
noise. A round that should be idle is measured up to three times, until nothing else takes a tenth of the clock or
shares the core; ``disturbed`` counts those in which something always did: measure again then. ``eager`` figures are
those of the engine ``Eager``, which times the networks of a latency budget one by one.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import parser_for, quiet, show_figures
from benchmarks.quantization_speed import calibrate
from lightning_optim.cost import Eager, Timing, speedup
from lightning_optim.demo import ResidualNet
from lightning_optim.export import Acceptance, export_onnx, export_quantized, time_models

WORK = {
    "idle": "",
    "spin": "while True: pass",
    "stream": "import numpy\na, b = numpy.ones(8_000_000), numpy.empty(8_000_000)\nwhile True: numpy.copyto(b, a)",
}
BATCHES = (1, 32)
OTHERS = ("control", "half", "int8")
TRIES = 3  # of a round that should be idle
IDLE_WAITING = 0.1  # share of the clock that the machine may still take for itself


@contextmanager
def beside(work: str) -> Iterator[None]:
    """Run two processes that do this work."""
    processes = [subprocess.Popen([sys.executable, "-c", WORK[work]]) for _ in range(2)] if WORK[work] else []
    try:
        time.sleep(1.0 if processes else 0.0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def networks() -> tuple[nn.Module, nn.Module]:
    """Return a network and one of half its channels; what they have learned does not matter for their times."""
    torch.manual_seed(0)
    return ResidualNet().eval(), ResidualNet(widths=(16, 32, 64)).eval()


def write_files(folder: Path, base: nn.Module, half: nn.Module, images: Tensor) -> dict[str, Path]:
    """Write the two and the integer form of the second."""
    paths = {name: folder / f"{name}.onnx" for name in ("base", "half", "int8")}
    export_onnx(base, (images,), paths["base"])
    export_onnx(half, (images,), paths["half"])
    lenient = Acceptance(fallbacks="refused", min_agreement=0.0, max_error=math.inf)
    export_quantized(calibrate(half, images), half, paths["int8"], (images,), acceptance=lenient)
    return {**paths, "control": paths["base"]}


def measure(seconds: float, rounds: int, works: list[str]) -> dict[str, Any]:
    """Return all figures, those of one kind of work after those of another in each round."""
    images, (base, half), eager = torch.rand(BATCHES[-1], 1, 16, 16), networks(), Eager()
    times: dict[str, list[dict[str, Any]]] = {work: [] for work in ("idle", *works)}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), base, half, images)
        for _ in range(rounds):
            for work, found in times.items():
                for _ in range(1 if WORK[work] else TRIES):
                    with beside(work):
                        models = time_models(paths, images.numpy(), BATCHES, seconds=seconds)
                        ratio = eager(base, (images,), {}) / eager(half, (images,), {})
                    if is_idle(models):
                        break
                found.append({"models": models, "eager": ratio})
    return {work: summarize(found, times["idle"]) for work, found in times.items()}


def is_idle(models: dict[str, dict[int, Timing]]) -> bool:
    """Whether nothing else was at work while these were timed."""
    timings = [timing for batches in models.values() for timing in batches.values()]
    return all(timing.is_calm and timing.waiting < IDLE_WAITING for timing in timings)


def summarize(found: list[dict[str, Any]], idle: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one kind of work; the idle ones are medians over the rounds."""
    figures: dict[str, Any] = {}
    for other in OTHERS:
        for batch in BATCHES:
            pairs = [(of["models"]["base"][batch], of["models"][other][batch]) for of in found]
            calm = [(of["models"]["base"][batch], of["models"][other][batch]) for of in idle]
            known = _decided(calm) or [speedup(*pair).median for pair in calm]
            figures |= _of_pairs(f"{other}_b{batch}", pairs, statistics.median(known))
    ratios, calm_ratio = [of["eager"] for of in found], statistics.median(of["eager"] for of in idle)
    figures["eager_speedup"] = statistics.median(ratios)
    figures["eager_shift"] = max(abs(ratio / calm_ratio - 1.0) for ratio in ratios)
    shifts = [figures[f"{other}_b{batch}_shift"] for other in OTHERS for batch in BATCHES]
    figures["worst_shift"] = max((shift for shift in shifts if shift is not None), default=None)
    timings = [timing for of in found for batches in of["models"].values() for timing in batches.values()]
    figures["disturbed"] = sum(not is_idle(of["models"]) for of in found)
    return figures | {"waiting": statistics.median(timing.waiting for timing in timings)}


def _of_pairs(name: str, pairs: list[tuple[Timing, Timing]], calm: float) -> dict[str, Any]:
    decided = _decided(pairs)
    return {
        f"{name}_speedup": statistics.median(speedup(*pair).median for pair in pairs),
        f"{name}_wall_speedup": statistics.median(base.wall_ms / other.wall_ms for base, other in pairs),
        f"{name}_shift": max((abs(ratio / calm - 1.0) for ratio in decided), default=None),
        f"{name}_undecided": len(pairs) - len(decided),
    }


def _decided(pairs: list[tuple[Timing, Timing]]) -> list[float]:
    spreads = [speedup(*pair) for pair in pairs]
    return [spread.median for spread in spreads if spread.is_decided]


def main() -> None:
    """Measure, print a table per kind of work and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="to spend on each batch size")
    parser.add_argument("--rounds", type=int, default=3, help="measurements beside each kind of work")
    parser.add_argument(
        "--beside", nargs="*", choices=["spin", "stream"], default=["spin", "stream"], help="other work"
    )
    options = parser.parse_args()
    quiet()
    figures = measure(options.seconds, options.rounds, options.beside)
    for work, found in figures.items():
        show_figures(f"Latency: {work}", found)
    if figures["idle"]["disturbed"]:
        print(f"Not idle: {figures['idle']['disturbed']} of {options.rounds} rounds were disturbed; measure again")
    print(json.dumps({"benchmark": "latency", "torch": torch.__version__, **figures}))


if __name__ == "__main__":
    main()
