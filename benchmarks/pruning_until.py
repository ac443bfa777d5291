"""How much does ``until`` remove in one fit, beside the best of many fits on plain schedules?

    python -m benchmarks.pruning_until [--nets cnn residual perceptron] [--data digits fashion] [--out FILE]

Channels of three nets on two data sets, the digits and the first 10,000 images of Fashion-MNIST. Each net is trained
once. From there, all fits have the same epochs, optimizer and one-cycle learning rate; ``--seeds`` order the batches:

- plain: schedules ``Linear`` and ``Iterative`` to each sparsity in steps of a tenth, until two in a row end below the
  limit, then halfway between; the best is the highest that ends within it, by the mean accuracy over the seeds.
- until: ``MetricDrop(monitor="val/accuracy", max_drop=0.01)`` with its defaults, on the schedule ``Linear(end=0.9)``;
  the mean sparsity over the seeds. Each of these fits ends within the limit.

The limit is 0.01 below the accuracy of the trained net. With 597 digits held out, the accuracy of one fit moves by as
much from seed to seed: the luckiest fit of a sweep says little, hence the mean; the luckiest is printed too.
Checkpoints are those that a ``ModelCheckpoint`` writes at the ends of epochs, with the optimizer's state: the largest
over that of the same fit without pruning, and the largest of those that are written while a step is given time to
recover, which hold a copy of the last good state. ``--out`` keeps what is done, and a second call goes on from there.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import parser_for, quiet, quiet_trainer
from benchmarks.study import Kept
from lightning_optim import PruningScheduler
from lightning_optim.demo import Classifier, Digits, FashionMNIST, ResidualNet, Split
from lightning_optim.pruning import Channel, MetricDrop
from lightning_optim.schedule import Iterative, Linear, Schedule

EPOCHS, BASE_LR, LR, MAX_DROP, END = 10, 4e-3, 1e-3, 0.01, 0.9
BASE_EPOCHS = {"digits": 30, "fashion": 8}
BATCH = {"digits": 32, "fashion": 128}
SIDE = {"digits": 8, "fashion": 28}
PLAIN: dict[str, Callable[[float], Schedule]] = {
    "linear": lambda end: Linear(end=end),
    "iterative": lambda end: Iterative(end=end),
}
# Rounding of a mean over batches in single precision.
_ROUNDING = 1e-6


def read(name: str) -> tuple[Split, Split]:
    """Images to train on and to validate with."""
    if name == "digits":
        train, validation, test = Digits(resolution=8, num_validation=147).splits
        joined = Split(
            images=torch.cat([validation.images, test.images]), labels=torch.cat([validation.labels, test.labels])
        )
        return train, joined
    train, validation, _ = FashionMNIST(num_validation=5000).splits
    return train.take(torch.arange(10_000)), validation.take(torch.arange(3000))


def network(name: str, side: int) -> nn.Module:
    """A net as its author would write it, with weights of its own."""
    torch.manual_seed(0)
    if name == "residual":
        return ResidualNet(widths=(16, 32), stem_stride=2 if side > 8 else 1)
    if name == "perceptron":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(side * side, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Case:
    """One net on one data set: its base, and fits from there, their batches in the order of ``seed``."""

    def __init__(self, net: str, data: str, base: Mapping[str, Tensor] | None) -> None:
        self.net, self.data, self.seed = net, data, 0
        self.train, self.validation = read(data)
        if base is None:
            module = self.fit([], None, epochs=BASE_EPOCHS[data], lr=BASE_LR)
            base = {name: value.clone() for name, value in module.net.state_dict().items()}
        self.base = base

    def fit(
        self, callbacks: list[Callback], base: Mapping[str, Tensor] | None, *, epochs: int = EPOCHS, lr: float = LR
    ) -> Classifier:
        """Train, from ``base`` if one is given."""
        net = network(self.net, SIDE[self.data])
        if base is not None:
            net.load_state_dict(base)
        seed_everything(self.seed, verbose=False)
        module = Classifier(net, lr=lr, memory_format="contiguous")
        saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        trainer = quiet_trainer(callbacks, saves=saves, max_epochs=epochs, num_sanity_val_steps=0)
        trainer.fit(module, self._loader(self.train, self.seed), self._loader(self.validation))
        return module

    def accuracy(self, net: nn.Module) -> float:
        """Share of right answers in validation."""
        net.eval()
        with torch.inference_mode():
            right = sum(
                int((net(images).argmax(1) == labels).sum()) for images, labels in self._loader(self.validation)
            )
        return right / len(self.validation)

    def plain(self, kind: str, sparsity: float) -> float:
        """Accuracy after a plain schedule."""
        pruning = PruningScheduler(schedule=PLAIN[kind](sparsity), structure=Channel())
        return self.accuracy(self.fit([pruning], self.base).net)

    def until(self) -> dict[str, Any]:
        """Sparsity and accuracy in one fit, and the largest checkpoints over that without pruning."""
        until = MetricDrop(monitor="val/accuracy", max_drop=MAX_DROP)
        pruning = PruningScheduler(schedule=Linear(end=END), structure=Channel(), until=until)
        tries = Tries(pruning)
        _, dense = self._saved([])
        net, sizes = self._saved([tries, pruning])
        return {
            "sparsity": pruning.sparsity,
            "accuracy": self.accuracy(net),
            "checkpoint": sizes[False] / dense[False],
            "checkpoint_with_copy": sizes.get(True, 0) / dense[False],
            "tries": tries.seen,
        }

    def _saved(self, callbacks: list[Callback]) -> tuple[nn.Module, dict[bool, int]]:
        """The trained net, and the largest file by whether it holds a copy of the last good state."""
        sizes: dict[bool, int] = {}
        with tempfile.TemporaryDirectory() as folder:
            saver = ModelCheckpoint(folder, save_top_k=-1, save_last=True)
            net = self.fit([*callbacks, saver], self.base).net
            for path in Path(folder).glob("*.ckpt"):
                has_copy = '"modules"' in repr_of_keys(torch.load(path, weights_only=True)["callbacks"])
                sizes[has_copy] = max(sizes.get(has_copy, 0), path.stat().st_size)
        return net, sizes

    def _loader(self, split: Split, seed: int | None = None) -> DataLoader[Any]:
        images = split.images.float() / (255.0 if split.images.dtype == torch.uint8 else 1.0)
        data = TensorDataset(images, split.labels)
        if seed is None:
            return DataLoader(data, batch_size=500)
        order = torch.Generator().manual_seed(seed)
        return DataLoader(data, batch_size=BATCH[self.data], shuffle=True, drop_last=True, generator=order)


def repr_of_keys(state: Any) -> str:
    """The keys of a nested state, as text."""
    return json.dumps(state, default=lambda _: None)


class Tries(Callback):
    """What each validation saw: sparsity that was asked for, and accuracy."""

    def __init__(self, pruning: PruningScheduler) -> None:
        self.pruning, self.seen = pruning, list[tuple[float, float]]()
        self._sparsity = 0.0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Note what is judged."""
        self._sparsity = self.pruning.target_sparsity

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note how it is judged."""
        self.seen.append((round(self._sparsity, 3), round(float(trainer.callback_metrics["val/accuracy"]), 4)))


class Study:
    """Results by name, kept in a file if one is given; bases lie beside it."""

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.once = Kept(out).once

    def case(self, net: str, data: str, seeds: Sequence[int]) -> dict[str, Any]:
        """Measure one net on one data set."""
        path = None if self.out is None else self.out.with_suffix(f".{net}.{data}.pt")
        known = torch.load(path, weights_only=True) if path is not None and path.exists() else None
        case, name = Case(net, data, known), f"{net}/{data}"
        if path is not None:
            torch.save(case.base, path)
        built = network(net, SIDE[data])
        built.load_state_dict(case.base)
        dense = self.once(f"{name}/dense", lambda: case.accuracy(built))
        sweep = Sweep(self, case, seeds, dense - MAX_DROP - _ROUNDING)
        fits = sweep.each(f"{name}/until", case.until)
        return {
            "dense": dense,
            "best": sweep.best,
            "luckiest": mean(sweep.luckiest),
            "until": {"lowest": min(fit["sparsity"] for fit in fits)}
            | {key: mean(fit[key] for fit in fits) for key in ("sparsity", "accuracy")}
            | {key: max(fit[key] for fit in fits) for key in ("checkpoint", "checkpoint_with_copy")},
        }


class Sweep:
    """Plain schedules at many sparsities, each with every seed."""

    def __init__(self, study: Study, case: Case, seeds: Sequence[int], limit: float) -> None:
        self._study, self._case, self._seeds, self._limit = study, case, seeds, limit
        self.luckiest = [0.0 for _ in seeds]
        self.best = max((self._best(kind) for kind in PLAIN), key=lambda found: found["sparsity"])

    def each(self, key: str, measure: Callable[[], Any]) -> list[Any]:
        """What is measured with each seed."""
        found = []
        for seed in self._seeds:
            self._case.seed = seed
            found.append(self._study.once(f"{key}/{seed}", measure))
        return found

    def _best(self, kind: str) -> dict[str, Any]:
        """The highest sparsity of one kind of schedule that ends within the limit."""
        best: dict[str, Any] = {"sparsity": 0.0, "accuracy": math.nan, "schedule": kind}
        fails = 0

        def is_good(tenths: float) -> bool:
            sparsity = tenths / 10
            key = f"{self._case.net}/{self._case.data}/{kind}/{sparsity:g}"
            fits = self.each(key, lambda: self._case.plain(kind, sparsity))
            within = [sparsity if accuracy >= self._limit else 0.0 for accuracy in fits]
            self.luckiest = [max(pair) for pair in zip(self.luckiest, within, strict=True)]
            if mean(fits) < self._limit:
                return False
            best.update(sparsity=sparsity, accuracy=mean(fits))
            return True

        for tenths in range(1, 10):
            fails = 0 if is_good(tenths) else fails + 1
            if fails == 2:
                break
        is_good(10 * best["sparsity"] + 0.5)
        return best


COLUMNS = (
    "case",
    "dense",
    "best plain",
    "accuracy",
    "until (lowest)",
    "accuracy",
    "until / plain",
    "luckiest plain",
    "file",
    "with copy",
)


def ratio(found: Mapping[str, Any]) -> float:
    """Sparsity with ``until`` over that of the best plain schedule."""
    best: float = found["best"]["sparsity"]
    return found["until"]["sparsity"] / best if best else math.inf


def show(cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"Channels removed within {MAX_DROP:g} of the dense net's accuracy")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, found in cases.items():
        best, until = found["best"], found["until"]
        table.add_row(
            name,
            f"{found['dense']:.4f}",
            f"{best['sparsity']:.2f} ({best['schedule']})",
            f"{best['accuracy']:.4f}",
            f"{until['sparsity']:.3f} ({until['lowest']:.3f})",
            f"{until['accuracy']:.4f}",
            f"{ratio(found):.2f}",
            f"{found['luckiest']:.2f}",
            f"{until['checkpoint']:.2f}",
            f"{until['checkpoint_with_copy']:.2f}",
        )
    Console(width=140).print(table)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--nets", nargs="+", default=["cnn", "residual", "perceptron"])
    parser.add_argument("--data", nargs="+", default=["digits", "fashion"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--out", type=Path, help="JSON file of what is done; bases lie beside it")
    options = parser.parse_args()
    quiet()
    study = Study(options.out)
    cases = {f"{net}/{data}": study.case(net, data, options.seeds) for data in options.data for net in options.nets}
    show(cases)
    worst = {
        "worst_ratio": min(ratio(found) for found in cases.values()),
        "largest_checkpoint": max(found["until"]["checkpoint"] for found in cases.values()),
        "largest_checkpoint_with_copy": max(found["until"]["checkpoint_with_copy"] for found in cases.values()),
    }
    print(json.dumps({"benchmark": "pruning_until", "torch": torch.__version__} | worst))


if __name__ == "__main__":
    main()
