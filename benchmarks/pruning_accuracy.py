"""How accurate are pruned nets, beside ``ModelPruning`` and Torch-Pruning, same size, same training?

    python -m benchmarks.pruning_accuracy [--only weights channels] [--without METHOD ...] [--seeds 0 1 2]
        [--quick] [--out FILE]

The net of ``data=fashion_mnist`` is trained once per seed; every method starts from that base and has the same epochs,
batches, optimizer and learning rates to prune it and to recover.

- weights: 80, 90 and 95 % of all weights of convolutions and linears are zero. Lightning's ``ModelPruning`` prunes all
  layers by one threshold at each epoch's end, by amounts (of what is left) that follow the cubic schedule as ours does.
- channels: 50 and 70 % of the channels of every layer are gone. Torch-Pruning removes them by group magnitude: a part
  at the beginning of each epoch from all layers alike, everything at once, or a part at a time by one threshold for
  the net (``global``), until it costs no more multiply-accumulates than with equal shares.

Cells give the accuracy on the 10,000 test images. ``--quick`` takes less than an eighth of the training; ``--out``
keeps what is done, and a second call goes on from there. Channels need Torch-Pruning (``benchmarks/requirements.txt``).
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelPruning
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.common import add_study, parser_for, quiet, quiet_trainer
from lightning_optim import PruningScheduler, Window
from lightning_optim.cost import count_macs, count_parameters
from lightning_optim.demo import Classifier, FashionMNIST, ResidualNet, Split
from lightning_optim.pruning import LAMP, Channel, Magnitude
from lightning_optim.schedule import Constant, Cubic

WIDTHS = (32, 64, 128)
IMAGE = torch.zeros(1, 1, 28, 28)
PRUNES_UNTIL = 0.7  # share of the fit after which a method has reached its sparsity: the rest is recovery
SPARSITIES = {"weights": (0.8, 0.9, 0.95), "channels": (0.5, 0.7)}
# Torch-Pruning rounds the channels that it keeps down, ours to the nearest: so both keep 9 of 32, 19 of 64, 38 of 128.
ROUNDED_AS_TORCH_PRUNING = {0.5: 0.5, 0.7: 0.705}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast.

    Args:
        epochs: Of how many parts the training consists.
        batches: Of 128 images, in each epoch.
        lr: Peak learning rate.
    """

    epochs: int
    batches: int
    lr: float


BASE, PRUNE = Training(epochs=8, batches=429, lr=5e-3), Training(epochs=20, batches=86, lr=2e-3)
QUICK_BASE, QUICK_PRUNE = Training(epochs=1, batches=429, lr=5e-3), Training(epochs=10, batches=15, lr=2e-3)


def fit(network: nn.Module, callbacks: Sequence[Callback], training: Training, data_seed: int) -> Classifier:
    """Train for so many batches; equal seeds give equal batches to every method."""
    seed_everything(data_seed)
    # Torch's threshold over several weights fails where they are in channels-last layout.
    is_plain = any(isinstance(callback, ModelPruning) for callback in callbacks)
    module = Classifier(network, lr=training.lr, memory_format="contiguous" if is_plain else "channels_last")
    trainer = quiet_trainer(callbacks, max_epochs=training.epochs, limit_train_batches=training.batches)
    trainer.fit(module, FashionMNIST(seed=data_seed).train_dataloader())
    return module


def accuracy(network: Callable[[Tensor], Tensor], split: Split) -> float:
    """Share of right answers, in percent."""
    right = 0
    with torch.inference_mode():
        for images, labels in zip(split.images.split(500), split.labels.split(500), strict=True):
            right += int((network(images.float() / 255.0).argmax(1) == labels).sum())
    return 100.0 * right / len(split)


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Whose weights are pruned, and counted."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def sparsity_of(network: nn.Module) -> float:
    """Share of the weights of convolutions and linears that are zero."""
    weights = [layer.weight for layer in layers_of(network)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def ours(sparsity: float, network: nn.Module, training: Training) -> Callback:
    """Single weights, by one threshold on what is relative to the layer, on the cubic schedule."""
    return PruningScheduler(
        schedule=Cubic(end=sparsity),
        allocation=LAMP(),
        window=Window(end=PRUNES_UNTIL, every=PRUNES_UNTIL / 20),
    )


def our_channels(sparsity: float, network: nn.Module, training: Training) -> Callback:
    """Channels, an equal share of each group, at once, by all weights that make or read them."""
    return PruningScheduler(
        schedule=Constant(value=ROUNDED_AS_TORCH_PRUNING[sparsity]),
        criterion=Magnitude(p=2),
        structure=Channel(shrink="update"),
    )


def model_pruning(sparsity: float, network: nn.Module, training: Training) -> Callback:
    """Lightning's masks, on the same cubic schedule: its amounts are of what is left."""
    steps = max(round(PRUNES_UNTIL * training.epochs), 1)
    reached = [Cubic(end=sparsity)(step / steps) for step in range(steps + 1)]

    def amount(epoch: int) -> float:
        return 0.0 if epoch >= steps else (reached[epoch + 1] - reached[epoch]) / (1.0 - reached[epoch])

    return ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(layer, "weight") for layer in layers_of(network)],
        use_global_unstructured=True,
        amount=amount,
        use_lottery_ticket_hypothesis=False,
    )


class TorchPruning(Callback):
    """Torch-Pruning within a fit, a part at the beginning of each epoch as its README does.

    Args:
        sparsity: Of the channels, in equal shares.
        whole: One threshold for the net, until it costs no more than with equal shares.
        steps: In how many parts.
    """

    def __init__(self, sparsity: float, network: nn.Module, steps: int, *, whole: bool) -> None:
        self.network, self.steps, self.whole = network, steps, whole
        self.full, self.target = count_macs(network, (IMAGE,)), macs_of_equal_shares(sparsity)
        import torch_pruning  # a peer, in few environments

        self.pruner = torch_pruning.pruner.BasePruner(
            network,
            IMAGE,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=whole,
            pruning_ratio=0.95 if whole else sparsity,
            max_pruning_ratio=0.9 if whole else 1.0,
            iterative_steps=100 if whole else steps,
            ignored_layers=[network.head],
        )

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.steps:
            return
        if self.whole:
            share = (trainer.current_epoch + 1) / self.steps
            while count_macs(self.network, (IMAGE,)) > self.full + share * (self.target - self.full):
                self.pruner.step()
        else:
            self.pruner.step()
        pl_module.train()  # it leaves the model in evaluation mode
        (optimizer,) = trainer.optimizers
        optimizer.param_groups[0]["params"] = list(pl_module.parameters())  # which it replaced
        optimizer.state.clear()


def macs_of_equal_shares(sparsity: float) -> int:
    """Multiply-accumulates of the net without this share of the channels of each layer."""
    widths = tuple(int((1.0 - sparsity) * width + 1e-9) for width in WIDTHS)
    return count_macs(ResidualNet(widths=widths, stem_stride=2), (IMAGE,))


def torch_pruning_channels(*, whole: bool, at_once: bool) -> Method:
    """Torch-Pruning in parts or all at the beginning."""

    def make(sparsity: float, network: nn.Module, training: Training) -> Callback:
        steps = 1 if at_once else max(round(PRUNES_UNTIL * training.epochs), 1)
        return TorchPruning(sparsity, network, steps, whole=whole)

    return make


Method = Callable[[float, nn.Module, Training], Callback]

METHODS: dict[str, dict[str, Method]] = {
    "weights": {"ours": ours, "ModelPruning": model_pruning},
    "channels": {
        "ours": our_channels,
        "Torch-Pruning": torch_pruning_channels(whole=False, at_once=False),
        "Torch-Pruning at once": torch_pruning_channels(whole=False, at_once=True),
        "Torch-Pruning global": torch_pruning_channels(whole=True, at_once=False),
    },
}


class Study:
    """Bases and results, kept in a file if one is given.

    Args:
        out: The file.
        base: How bases are trained.
        prune: How a pruned net is trained.
    """

    def __init__(self, out: Path | None, base: Training, prune: Training) -> None:
        self.out, self.base, self.prune = out, base, prune
        self.results: dict[str, dict[str, float]] = {}
        if out is not None and out.exists():
            self.results = json.loads(out.read_text())
        _, self.validation, self.test = FashionMNIST().splits
        self._bases: dict[int, Mapping[str, Tensor]] = {}

    def network(self, seed: int) -> ResidualNet:
        """A copy of the seed's base."""
        torch.manual_seed(seed)
        network = ResidualNet(widths=WIDTHS, stem_stride=2)
        if seed not in self._bases:
            path = None if self.out is None else self.out.with_suffix(f".base{seed}.pt")
            if path is not None and path.exists():
                self._bases[seed] = torch.load(path, weights_only=True)
            else:
                fit(network, [], self.base, seed)
                self._bases[seed] = copy.deepcopy(network.state_dict())
                if path is not None:
                    torch.save(self._bases[seed], path)
        network.load_state_dict(self._bases[seed])
        return network

    def measure(self, key: str, seed: int, method: Method | None, sparsity: float = 0.0) -> None:
        """Prune and judge, if that is not done yet."""
        if key in self.results:
            return
        network, began = self.network(seed), time.process_time()
        if method is not None:
            fit(network, [method(sparsity, network, self.prune)], self.prune, 1000 + seed)
        seconds = time.process_time() - began
        self.record(key, network.eval(), seconds)

    def record(self, key: str, network: nn.Module, seconds: float) -> None:
        """Judge a net, and keep what was found."""
        found = {
            "test": accuracy(network, self.test),
            "validation": accuracy(network, self.validation),
            "sparsity": sparsity_of(network),
            "parameters": count_parameters(network),
            "macs": count_macs(network, (IMAGE,)),
            "cpu_seconds": seconds,
        }
        self.keep(key, found)

    def keep(self, key: str, found: dict[str, float]) -> None:
        """Remember, and write down."""
        self.results[key] = found
        if self.out is not None:
            self.out.write_text(json.dumps(self.results, indent=1))


def summarize(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Means over seeds of each ``part/sparsity/method``."""
    by_cell: dict[str, list[Mapping[str, float]]] = {}
    for key, result in results.items():
        by_cell.setdefault(key.rpartition("/")[0], []).append(result)
    return {
        cell: {
            "test": round(statistics.mean(result["test"] for result in found), 3),
            "each": [round(result["test"], 2) for result in found],
            "sparsity": statistics.mean(result["sparsity"] for result in found),
            "parameters": statistics.mean(result["parameters"] for result in found),
            "macs": statistics.mean(result["macs"] for result in found),
        }
        for cell, found in by_cell.items()
    }


def show(cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="Test accuracy after pruning, in percent")
    for name in ("cell", "mean", "seeds", "zeros", "parameters", "MMACs"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for cell, found in cells.items():
        seeds = " ".join(f"{value:.2f}" for value in found["each"])
        zeros, size, macs = f"{found['sparsity']:.4f}", f"{found['parameters']:,.0f}", f"{found['macs'] / 1e6:.3f}"
        table.add_row(cell, f"{found['test']:.2f}", seeds, zeros, size, macs)
    Console(width=120).print(table)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="what to measure")
    parser.add_argument("--without", nargs="+", default=[], metavar="METHOD", help="what to leave out")
    add_study(parser)
    options = parser.parse_args()
    quiet()
    study = Study(options.out, *((QUICK_BASE, QUICK_PRUNE) if options.quick else (BASE, PRUNE)))
    for seed in options.seeds:
        study.measure(f"base/{seed}", seed, None)
        for part in options.only:
            for sparsity in SPARSITIES[part]:
                for name, method in METHODS[part].items():
                    if name in options.without:
                        continue
                    study.measure(f"{part}/{sparsity:.0%}/{name}/{seed}", seed, method, sparsity)
    cells = summarize(study.results)
    show(cells)
    print(json.dumps({"benchmark": "pruning_accuracy", "torch": torch.__version__, "cells": cells}))


if __name__ == "__main__":
    main()
