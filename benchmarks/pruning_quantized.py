"""Pruned, distilled and quantized in one fit: what does it cost in accuracy beside one after the other?

    python -m benchmarks.pruning_quantized [--seeds 0 1 2] [--out FILE] [--quick]

The bases are those of ``benchmarks.pruning_accuracy``. Both ways end at 80 % zeros in an int8 file, after the same
number of batches.

- one fit: ``PruningScheduler`` over the first half, ``QATFakeQuant`` over the last 40 %, ``DistillationTeacher`` with
  the base as the teacher all along.
- in sequence: a fit to prune, one to distil and one to quantize, the last two with the teacher, all masks held.

The file is run by ONNX Runtime on the 10,000 test images, and the integers of every masked weight are looked up in it.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from lightning.pytorch import Callback
from onnx import numpy_helper
from torch import Tensor, nn

from benchmarks.common import add_study, parser_for, quiet
from benchmarks.pruning_accuracy import (
    BASE,
    IMAGE,
    PRUNE,
    QUICK_BASE,
    QUICK_PRUNE,
    Study,
    Training,
    accuracy,
    fit,
    layers_of,
    show,
    sparsity_of,
    summarize,
)
from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant, Window
from lightning_optim.cost import count_macs, count_parameters
from lightning_optim.pruning import LAMP
from lightning_optim.schedule import Constant, Cubic

SPARSITY = 0.8


def pruning(end: float) -> Callback:
    """Single weights, on the cubic schedule."""
    window = Window(end=end, every=end / 20)
    return PruningScheduler(schedule=Cubic(end=SPARSITY), allocation=LAMP(), window=window)


def holding() -> Callback:
    """The zeros of an earlier fit stay."""
    window = Window(end=1, unit="step")
    return PruningScheduler(schedule=Constant(value=SPARSITY), allocation=LAMP(), window=window)


def distilling(teacher: nn.Module) -> Callback:
    """The base's answers count for more than the labels."""
    return DistillationTeacher(teacher=copy.deepcopy(teacher), weight=0.7, hard_weight=0.3)


def one_fit(network: nn.Module, training: Training, seed: int) -> QATFakeQuant:
    """All at once."""
    quantizing = QATFakeQuant(window=Window(begin=0.6))
    fit(network, [pruning(0.5), distilling(network), quantizing], training, seed)
    return quantizing


def in_sequence(network: nn.Module, training: Training, seed: int) -> QATFakeQuant:
    """A half, three tenths and a fifth of the epochs."""
    base, quantizing = copy.deepcopy(network), QATFakeQuant()
    shares = {"prune": 0.5, "distil": 0.3, "quantize": 0.2}
    callbacks = {
        "prune": [pruning(0.75)],
        "distil": [holding(), distilling(base)],
        "quantize": [holding(), distilling(base), quantizing],
    }
    for stage, share in shares.items():
        epochs = round(share * training.epochs)
        fit(network, callbacks[stage], Training(epochs=epochs, batches=training.batches, lr=training.lr), seed)
        seed += 100
    return quantizing


WAYS: dict[str, Callable[[nn.Module, Training, int], QATFakeQuant]] = {"one fit": one_fit, "in sequence": in_sequence}


def lost_zeros(path: Path, network: nn.Module) -> tuple[int, int]:
    """How many weights are zero, and how many of those are another integer in the file."""
    whole = [numpy_helper.to_array(held) for held in onnx.load(path).graph.initializer if held.data_type == 3]
    integers = [torch.tensor(values) for values in whole if values.ndim > 1]  # in the order in which layers are called
    masks = [layer.weight == 0 for layer in layers_of(network)]
    if [values.shape for values in integers] != [mask.shape for mask in masks]:
        raise RuntimeError("the file's layers are not the network's")
    pairs = list(zip(masks, integers, strict=True))
    return sum(int(mask.sum()) for mask in masks), sum(int((values[mask] != 0).sum()) for mask, values in pairs)


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file as a function of images."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def measure(study: Study, way: str, seed: int) -> None:
    """Compress one base, export it, and judge the file."""
    key = f"int8/{SPARSITY:.0%}/{way}/{seed}"
    if key in study.results:
        return
    network, began = study.network(seed), time.process_time()
    quantizing = WAYS[way](network, study.prune, 1000 + seed)
    seconds = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        exported = quantizing.export(path, fallbacks="refused")
        masked, lost = lost_zeros(path, network)
        study.keep(
            key,
            {
                "test": accuracy(runner(path), study.test),
                "simulated": accuracy(quantizing.simulated(), study.test),
                "sparsity": sparsity_of(network),
                "masked": masked,
                "masked_but_not_zero_in_file": lost,
                "bytes": exported.num_bytes,
                "parameters": count_parameters(network),
                "macs": count_macs(network, (IMAGE,)),
                "cpu_seconds": seconds,
            },
        )


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    add_study(parser)
    options = parser.parse_args()
    quiet()
    study = Study(options.out, *((QUICK_BASE, QUICK_PRUNE) if options.quick else (BASE, PRUNE)))
    for seed in options.seeds:
        for way in WAYS:
            measure(study, way, seed)
    found = {key: result for key, result in study.results.items() if key.startswith("int8/")}
    show(summarize(found))
    lost = sum(result["masked_but_not_zero_in_file"] for result in found.values())
    cells = {"cells": summarize(found), "masked_but_not_zero_in_file": lost}
    print(json.dumps({"benchmark": "pruning_quantized", "torch": torch.__version__} | cells))


if __name__ == "__main__":
    main()
