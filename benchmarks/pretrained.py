"""Two pretrained networks, from their published weights to a pruned int8 file, measured in ONNX Runtime.

    python -m benchmarks.pretrained [--only cnn transformer] [--unpruned] [--small]

- cnn: EfficientNet-Lite0 on Fashion-MNIST at 64 x 64; half of the channels of every group go.
- transformer: all-MiniLM-L6-v2 on the definitions of WordNet, 41 classes; half of the heads and of the neurons go.

Each is fine-tuned (``base``), calibrated for int8 without training (``post-training``), and trained for int8 for an
epoch with the base as teacher (``trained int8``). Then the base is pruned in rounds with itself as teacher, physically
shrunk (``pruned``), and trained for int8 (``pruned int8``); ``--unpruned`` ends before that. Accuracy is that of the
ONNX file, on samples that no training saw. ``agreement`` is the share of them for which the file and the network in
PyTorch name the same class. The shrunk network is checked against a full-size one that has its weights, and zeros
where something was removed; and against what ``load_pruned`` makes of its checkpoint. Latency is CPU time of one call
on one thread, all files taking turns.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import parser_for, quiet, quiet_trainer
from benchmarks.pretrained_tasks import FineTuning, Task, cnn, transformer
from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant
from lightning_optim.cost import count_macs, count_parameters
from lightning_optim.errors import LightningOptimError
from lightning_optim.export import check_parity, export_onnx, load_session, time_models
from lightning_optim.pruning import load_pruned

Figures = dict[str, Any]
CALIBRATION = 16  # batches


@final
@dataclass(slots=True)
class Stage:
    """What became of the network in one stage."""

    accuracy: float
    agreement: float
    bytes: int
    parameters: int
    macs: int
    integer_kernels: float = 0.0


@final
class Run:
    """One network on its way.

    Args:
        task: The network and what it learns.
        folder: For ONNX files and checkpoints.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.stages: dict[str, Stage] = {}
        self.paths: dict[str, Path] = {}
        self.notes: Figures = {}
        self.example = task.inputs(next(iter(task.batches("test"))))

    def fit(
        self, module: FineTuning, callbacks: list[Callback], *, epochs: int = 1, batches: int | None = None
    ) -> Trainer:
        """Train, or only let callbacks look at some batches: then dropout and batch-norm statistics rest."""
        torch.manual_seed(0)
        module.train(batches is None)  # a Trainer trains in the mode that it finds, and an export leaves eval behind
        trainer = quiet_trainer(callbacks, max_epochs=epochs, limit_train_batches=batches)
        trainer.fit(module, self.task.batches("train"))
        return trainer

    def measure(self, name: str, module: FineTuning, quantizer: QATFakeQuant | None = None) -> None:
        """Export, and compare the file with the network."""
        path, (args, kwargs) = self.folder / f"{name}.onnx", self.task.call(self.example)
        kernels = 0.0
        if quantizer is None:
            export_onnx(module.net, args, path, kwargs=kwargs)
            forward: Callable[..., Any] = module.net.eval()
        else:
            kernels = quantizer.export(path, module, fallbacks="refused").kernels.integer_fraction
            forward = quantizer.simulated(module)
        one_args, one_kwargs = self.task.call(tuple(tensor[:1] for tensor in self.example))
        batches = [self.task.inputs(batch) for batch in self.task.batches("test")]
        stage = Stage(
            accuracy=self._accuracy(path),
            agreement=check_parity(forward, path, batches).top1_agreement,
            bytes=path.stat().st_size,
            parameters=count_parameters(module.net),
            macs=count_macs(module.net, one_args, one_kwargs),
            integer_kernels=kernels,
        )
        self.paths[name], self.stages[name] = path, stage
        print(f"{name}: accuracy {stage.accuracy:.2%}, {stage.bytes / 1e6:.2f} MB", flush=True)

    def attempt(self, name: str, module: FineTuning, quantizer: QATFakeQuant) -> None:
        """Measure an int8 file; where it is refused, note why."""
        try:
            self.measure(name, module, quantizer)
        except LightningOptimError as error:
            self.notes[f"{name}: refused"] = f"{type(error).__name__}: {error}"

    def _accuracy(self, path: Path) -> float:
        session, right, total = load_session(path), 0, 0
        for batch in self.task.batches("test"):
            labels = batch["labels"] if isinstance(batch, Mapping) else batch[1]
            right += int((session.run(*self.task.inputs(batch))[0].argmax(1) == labels.numpy()).sum())
            total += len(labels)
        return right / total


def restored(full: nn.Module, small: nn.Module, callbacks: list[PruningScheduler]) -> nn.Module:
    """Put the weights of a shrunk network where they were in the full-size one, with zeros around them."""
    cuts = {name: cut for callback in callbacks for name, cut in callback.cut.items()}
    kept = small.state_dict()
    for name, tensor in full.state_dict().items():
        values = kept[name]
        for dim, positions, size in cuts.get(name, ()):
            around = values.new_zeros([size if axis == dim else length for axis, length in enumerate(values.shape)])
            values = around.index_copy(dim, positions, values)
        tensor.copy_(values)
    return full.eval()


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Largest difference of two networks' logits, relative to the largest of them."""
    answers = [_logits(net.eval()(*args, **kwargs)) for net in (one, other)]
    return float((answers[0] - answers[1]).abs().max() / answers[0].abs().max())


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def quantize(run: Run, base: FineTuning) -> None:
    """int8 without training, and with an epoch of it; the base stays as it is."""
    task, quantizer = run.task, QATFakeQuant()
    calibrated = task.module(copy.deepcopy(base.net), 0.0)
    run.fit(calibrated, [quantizer], batches=CALIBRATION)
    run.attempt("post-training", calibrated, quantizer)

    quantizer = QATFakeQuant()
    trained = task.module(copy.deepcopy(base.net), task.quantized_peak)
    run.fit(trained, [quantizer, DistillationTeacher(teacher=copy.deepcopy(base.net), losses=task.loss)])
    run.attempt("trained int8", trained, quantizer)


def prune(run: Run, base: FineTuning, epochs: int) -> None:
    """Half of the network, then int8; the base is frozen from here on."""
    task, folder = run.task, run.folder
    pruned = task.module(copy.deepcopy(base.net), task.peak)
    pruning = task.prune()
    teacher = DistillationTeacher(teacher=base.net, losses=task.loss)
    began = time.process_time()
    trainer = run.fit(pruned, [*pruning, teacher], epochs=epochs)
    run.notes["pruning_seconds"] = time.process_time() - began
    args, kwargs = task.call(run.example)
    schedulers = [callback for callback in pruning if isinstance(callback, PruningScheduler)]
    full = restored(task.make(), pruned.net, schedulers)
    run.notes["masked_error"] = difference(full, pruned.net, args, kwargs)
    trainer.save_checkpoint(folder / "pruned.ckpt")
    loaded = load_pruned(task.module(task.make(), task.peak), folder / "pruned.ckpt")
    run.notes["loaded_error"] = difference(loaded.net, pruned.net, args, kwargs)
    run.measure("pruned", pruned)

    quantizer = QATFakeQuant()
    run.fit(pruned, [quantizer, DistillationTeacher(teacher=base.net, losses=task.loss)])
    run.attempt("pruned int8", pruned, quantizer)


def compress(task: Task, folder: Path, prune_epochs: int) -> Figures:
    """Take one network through all stages; none of pruning without epochs for it."""
    run = Run(task, folder)
    torch.manual_seed(0)
    base = task.module(task.make(), task.peak)
    run.fit(base, [])
    if task.settling_peak:
        base = task.module(base.net, task.settling_peak)
        run.fit(base, [])
    run.measure("base", base)
    quantize(run, base)
    if prune_epochs:
        prune(run, base, prune_epochs)
    return summarize(run)


def summarize(run: Run) -> Figures:
    """Time all files, and put everything into one record."""
    arrays = [tensor.numpy() for tensor in run.example]
    timings = time_models(run.paths, arrays, (1, 32), seconds=6)
    stages = {}
    for name, stage in run.stages.items():
        fields = {field: getattr(stage, field) for field in Stage.__slots__}
        stages[name] = fields | {f"ms_batch_{size}": timing.cpu_ms for size, timing in timings[name].items()}
    return {"stages": stages, **run.notes}


def show(title: str, figures: Figures) -> None:
    """Print one network's table."""
    table = Table(title=title)
    for column in ("stage", "accuracy", "agreement", "MB", "params (M)", "MMACs", "integer", "ms, batch 1", "batch 32"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, stage in figures["stages"].items():
        table.add_row(
            name,
            f"{stage['accuracy']:.2%}",
            f"{stage['agreement']:.2%}",
            f"{stage['bytes'] / 1e6:.2f}",
            f"{stage['parameters'] / 1e6:.2f}",
            f"{stage['macs'] / 1e6:.1f}",
            f"{stage['integer_kernels']:.0%}",
            f"{stage['ms_batch_1']:.2f}",
            f"{stage['ms_batch_32']:.1f}",
        )
    console = Console(width=120)
    console.print(table)
    for name, value in figures.items():
        if name != "stages":
            console.print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")


NETWORKS: dict[str, tuple[Callable[[int, int], Task], tuple[int, int], int]] = {
    "cnn": (cnn, (3200, 1000), 2),
    "transformer": (transformer, (3200, 4000), 1),
}


def main() -> None:
    """Compress, print a table for each network and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="which network")
    parser.add_argument("--unpruned", action="store_true", help="int8 alone")
    parser.add_argument("--small", action="store_true", help="a few batches: does every step work?")
    options = parser.parse_args()
    quiet()
    figures: Figures = {}
    for name in options.only:
        make, sizes, epochs = NETWORKS[name]
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            task = make(*((640, 128) if options.small else sizes))
            found = compress(task, Path(folder), 0 if options.unpruned else epochs)
        figures[name] = found | {"seconds": time.process_time() - began}
        show(name, figures[name])
    print(json.dumps({"benchmark": "pretrained", "torch": torch.__version__} | figures))


if __name__ == "__main__":
    main()
