"""How accurate is a net at low bits, after training and after one epoch of training for them?

    python -m benchmarks.quantization_accuracy [--widths w4a8 w2a8 w1a8 w8a8 w3a8] [--ways WAY ...]
        [--seeds 0 1 2] [--quick] [--out FILE]

The bases are those of ``benchmarks.pruning_accuracy``: a residual net of widths 32, 64 and 128 on Fashion-MNIST.
Activations have 8 bits; so have the weights of the first and the last layer, unless a row says ``all layers``.

- float: the base trained on for the same epoch, without quantization.
- rounded: weights to the nearest value, ranges of activations from 1,024 training images; nothing is trained.
- AdaRound: the same with cross-layer equalization, AdaRound and bias correction.
- trained: one epoch under ``QATFakeQuant``, with the base as teacher; ``trained alone`` has no teacher.

Cells give the accuracy on the 10,000 test images as the integers compute it, and ``file`` that of the exported file in
ONNX Runtime. Settings were chosen on the 5,000 validation images. ``--quick`` takes less than an eighth of the
training; ``--out`` keeps what is done, and a second call goes on from there.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import add_study, parser_for, quiet
from benchmarks.pruning_accuracy import BASE, QUICK_BASE, Study, Training, accuracy, fit
from lightning_optim import DistillationTeacher, QATFakeQuant, Targets
from lightning_optim.demo import FashionMNIST
from lightning_optim.export import load_session
from lightning_optim.quantization import (
    AdaRound,
    BiasCorrection,
    Binary,
    CrossLayerEqualization,
    LayerQuantizers,
    LearnedStep,
    PostTraining,
    Quantizer,
    Symmetric,
)

EPOCH = Training(epochs=1, batches=429, lr=1e-3)
QUICK_EPOCH = Training(epochs=1, batches=50, lr=1e-3)
CALIBRATION = 8  # batches of 128 images
FIRST_AND_LAST = Targets(include=("*stem", "*head"))
REPAIRS = (CrossLayerEqualization(), AdaRound(), BiasCorrection())


@final
@dataclass(frozen=True, kw_only=True)
class Width:
    """How weights of one width are rounded, and how fast they are trained.

    Args:
        rounded: Quantizer of weights that are not trained.
        trained: Quantizer of weights that are.
        lr: Peak learning rate of the epoch.
        all_lr: The same if the first and the last layer are low, too: their weights have far to go to the next value.
        repairs: What makes rounding cost less, if it can treat these weights.
    """

    rounded: Quantizer
    trained: Quantizer
    lr: float
    all_lr: float
    repairs: Sequence[PostTraining] = REPAIRS


WIDTHS: Mapping[str, Width] = {
    "w8a8": Width(rounded=Symmetric(bits=8), trained=Symmetric(bits=8), lr=5e-4, all_lr=5e-4),
    "w4a8": Width(rounded=Symmetric(bits=4), trained=LearnedStep(bits=4), lr=5e-4, all_lr=2e-3),
    "w3a8": Width(rounded=Symmetric(bits=3), trained=LearnedStep(bits=3), lr=1e-3, all_lr=2e-3),
    "w2a8": Width(rounded=Symmetric(bits=2), trained=LearnedStep(bits=2), lr=1e-3, all_lr=1e-3),
    "w1a8": Width(rounded=Binary(), trained=Binary(), lr=2e-3, all_lr=2e-3, repairs=()),
}
JUDGED = ("w4a8", "w2a8", "w1a8")
Way = Callable[[nn.Module, Width, Training, int], QATFakeQuant]


def quantizing(weights: Quantizer, *, every_layer: bool = False) -> QATFakeQuant:
    """Weights of these bits, but for the first and the last layer's, which have 8."""
    ends = {} if every_layer else {"ends": LayerQuantizers(targets=FIRST_AND_LAST, weight_quantizer=Symmetric())}
    return QATFakeQuant(weight_quantizer=weights, layers=ends)


def rounded(network: nn.Module, width: Width, training: Training, seed: int, *, repairs: bool) -> QATFakeQuant:
    """Round what was trained."""
    callback = quantizing(width.rounded)
    batches = [images for images, _ in islice(FashionMNIST(seed=seed).train_dataloader(), CALIBRATION)]
    callback.calibrate(network.eval(), batches, methods=width.repairs if repairs else ())
    return callback


def trained(
    network: nn.Module, width: Width, training: Training, seed: int, *, teacher: bool = True, every_layer: bool = False
) -> QATFakeQuant:
    """Train under the rounding."""
    callback = quantizing(width.trained, every_layer=every_layer)
    distilling = [DistillationTeacher(teacher=copy.deepcopy(network))] if teacher else []
    fit(network, [callback, *distilling], replace(training, lr=width.all_lr if every_layer else width.lr), 1000 + seed)
    return callback


WAYS: Mapping[str, Way] = {
    "rounded": partial(rounded, repairs=False),
    "AdaRound": partial(rounded, repairs=True),
    "trained": trained,
    "trained alone": partial(trained, teacher=False),
    "trained, all layers": partial(trained, every_layer=True),
}


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file as a function of images."""
    session = load_session(path)
    return lambda images: torch.from_numpy(session.run(images)[0])


def judged(callback: QATFakeQuant, network: nn.Module, study: Study) -> dict[str, float]:
    """Accuracy as simulated and of the file, and what the file holds."""
    simulated = callback.simulated(network)
    found = {"test": accuracy(simulated, study.test), "validation": accuracy(simulated, study.validation)}
    with tempfile.TemporaryDirectory() as folder:
        exported = callback.export(Path(folder) / "net.onnx", network, fallbacks="refused")
        in_file = accuracy(runner(exported.path), study.test)
    return found | {
        "file": in_file,
        "bytes": exported.num_bytes,
        "integer_kernels": exported.kernels.integer_fraction,
    }


def measure_cell(study: Study, name: str, way: str, training: Training, seed: int) -> None:
    """Quantize one base in one way, and judge it, if that is not done yet."""
    key, width = f"{name}/{way}/{seed}", WIDTHS[name]
    if key in study.results or (way == "AdaRound" and not width.repairs):
        return
    network, began = study.network(seed), time.process_time()
    callback = WAYS[way](network, width, training, seed)
    seconds = time.process_time() - began
    study.keep(key, judged(callback, network, study) | {"cpu_seconds": seconds})


def measure_float(study: Study, training: Training, seed: int) -> None:
    """Judge the base, and the base after the same epoch without quantization."""
    study.measure(f"float/base/{seed}", seed, None)
    key = f"float/trained on/{seed}"
    if key not in study.results:
        network = study.network(seed)
        fit(network, [], training, 1000 + seed)
        study.record(key, network.eval(), 0.0)


def summarize(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Each ``width/way``: accuracy and loss in points of every seed, and their means."""
    base = {key.rpartition("/")[2]: found["test"] for key, found in results.items() if key.startswith("float/base/")}
    cells: dict[str, dict[str, Any]] = {}
    for key, found in results.items():
        cell, _, seed = key.rpartition("/")
        row = cells.setdefault(cell, {"test": [], "loss": [], "file": [], "bytes": []})
        row["test"].append(found["test"])
        row["loss"].append(base[seed] - found["test"])
        row["file"] += [found["file"]] if "file" in found else []
        row["bytes"] += [found["bytes"]] if "bytes" in found else []
    return cells


def show(cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="Test accuracy of quantized nets, in percent")
    for name in ("cell", "mean", "seeds", "points lost", "file", "kB"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for cell, found in cells.items():
        seeds, mean = " ".join(f"{value:.2f}" for value in found["test"]), statistics.mean(found["test"])
        file = f"{statistics.mean(found['file']):.2f}" if found["file"] else ""
        size = f"{statistics.mean(found['bytes']) / 1e3:.0f}" if found["bytes"] else ""
        table.add_row(cell, f"{mean:.2f}", seeds, f"{statistics.mean(found['loss']):.2f}", file, size)
    Console(width=120).print(table)


def figures(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Points lost in each cell, the mean over seeds; of what is trained with a teacher those of each seed as well."""
    found: dict[str, Any] = {}
    for cell, row in cells.items():
        width, way = cell.split("/")
        name = width if way == "trained" else f"{width}_{way.lower().replace(',', '').replace(' ', '_')}"
        found[f"{name}_loss_points"] = round(statistics.mean(row["loss"]), 3)
        if way == "trained":
            found[f"{name}_loss_points_each"] = [round(loss, 2) for loss in row["loss"]]
    return found


def measure(
    seeds: Sequence[int] = (0,),
    widths: Sequence[str] = JUDGED,
    ways: Sequence[str] = tuple(WAYS),
    out: Path | None = None,
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure, and print the table."""
    training = QUICK_EPOCH if quick else EPOCH
    study = Study(out, QUICK_BASE if quick else BASE, training)
    for seed in seeds:
        measure_float(study, training, seed)
        for name in widths:
            for way in ways:
                measure_cell(study, name, way, training, seed)
    cells = summarize(study.results)
    show(cells)
    return figures(cells)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--widths", nargs="+", choices=list(WIDTHS), default=list(JUDGED), help="what to measure")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="how to quantize")
    add_study(parser)
    options = parser.parse_args()
    quiet()
    found = measure(options.seeds, options.widths, options.ways, options.out, quick=options.quick)
    print(json.dumps({"benchmark": "quantization_accuracy", "torch": torch.__version__} | found))


if __name__ == "__main__":
    main()
