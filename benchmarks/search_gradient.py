"""Gradient-based search on a cell space whose members have all been trained: where the pick ranks.

Called by ``benchmarks.search``; ``members`` trains every architecture of the space on its own and keeps what is done.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import quiet, quiet_trainer
from lightning_optim import NASSupernet, Targets
from lightning_optim.atomic import write_atomic
from lightning_optim.cost import count_parameters
from lightning_optim.nas import DARTS, ArchitectureSteps, LearnedSampler, OperationChoice, Selection

OPERATIONS = ("convolution", "pointwise", "skip", "pool", "depthwise")
CHANNELS, NOISE, EPOCHS, BATCH, TRAINED_ON, RATE = 8, 1.0, 15, 64, 900, 0.01
MEMBER_SEEDS = (0, 1)
DEPTH = 20


def operation(name: str, channels: int = CHANNELS) -> nn.Module:
    """One operation of the cell: shapes stay as they are."""
    if name == "skip":
        return nn.Identity()
    if name == "point":
        return nn.Sequential(*_normed(channels, channels, 1))
    if name == "pool":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    if name == "pointwise":  # the most parameters, and no look at a neighbour
        return nn.Sequential(*_normed(channels, 6 * channels, 1), *_normed(6 * channels, channels, 1))
    if name == "depthwise":
        return nn.Sequential(*_normed(channels, channels, 5, groups=channels))
    return nn.Sequential(*_normed(channels, channels, 3))


def _normed(inputs: int, outputs: int, size: int, groups: int = 1) -> Iterator[nn.Module]:
    yield nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    yield nn.BatchNorm2d(outputs)
    yield nn.ReLU()


class CellNet(nn.Module):
    """A stem, one cell of four operations, and a head; the cell is ``d(b(x) + c(a(x)))``.

    Args:
        operations: Names of the four, ``a`` to ``d``.
    """

    def __init__(self, operations: tuple[str, ...] = ("convolution",) * 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        self.a, self.b, self.c, self.d = map(operation, operations)
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, shape [N, 10]."""
        x = self.stem(x)
        return self.head(self.d(self.b(x) + self.c(self.a(x))).mean((2, 3)))


def noisy_digits(noise: float = NOISE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels of the 1,797 digits with Gaussian noise: 900 to train on, the rest to compare by."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    x = (x - x.mean()) / x.std()
    x, y = x + noise * torch.randn(x.shape, generator=generator), torch.tensor(labels)
    order = torch.randperm(len(x), generator=generator)
    x, y = x[order], y[order]
    return x[:TRAINED_ON], y[:TRAINED_ON], x[TRAINED_ON:], y[TRAINED_ON:]


class Classifier(LightningModule):
    """A network trained as each member is.

    Args:
        net: The network.
        num_steps: Optimizer steps of its fit.
    """

    def __init__(self, net: nn.Module, num_steps: int) -> None:
        super().__init__()
        self.net, self._num_steps = net, num_steps
        self.example_input_array = torch.zeros(2, 1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, shape [N, 10]."""
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """AdamW on one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=0.01)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, self._num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


def loader_of(batch_size: int, noise: float = NOISE) -> DataLoader[Any]:
    """The digits to train on, shuffled."""
    x, y, _, _ = noisy_digits(noise)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True, drop_last=True)


def trained_accuracy(network: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> float:
    """Train a network from its weights, and return its accuracy on what it was not trained on."""
    x, y, other_x, other_y = data
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for chosen in order[: steps * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
            rates.step()
    network.eval()
    with torch.no_grad():
        return float((network(other_x).argmax(1) == other_y).float().mean())


def members(folder: Path, seeds: tuple[int, ...] = MEMBER_SEEDS) -> dict[str, float]:
    """Train every member of the cell space with each seed; what is done is kept in ``cell_members.json``.

    Args:
        folder: Where the file is, or will be.
        seeds: Of the weights and of the order of the batches.

    Returns:
        Mean accuracy by the four operations' indices, such as ``"0,2,1,0"``.
    """
    path, data = folder / "cell_members.json", noisy_digits()
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    for seed in seeds:
        done = known.setdefault(str(seed), {})
        for number, options in enumerate(itertools.product(range(len(OPERATIONS)), repeat=4)):
            key = ",".join(map(str, options))
            if key not in done:
                torch.manual_seed(seed)
                network = CellNet(tuple(OPERATIONS[option] for option in options))
                done[key] = trained_accuracy(network, data, seed)
                if number % 5 == 4:
                    write_atomic(path, json.dumps(known).encode())
        write_atomic(path, json.dumps(known).encode())
    return {key: statistics.mean(known[str(seed)][key] for seed in seeds) for key in known[str(seeds[0])]}


def cell_space() -> dict[str, OperationChoice]:
    """The cell space as it is declared."""
    others = {name: lambda name=name: operation(name) for name in OPERATIONS[1:]}
    return {"cell": OperationChoice(targets=Targets(include=["net.a", "net.b", "net.c", "net.d"]), candidates=others)}


def searched(
    make: Callable[[], nn.Module],
    space: Mapping[str, OperationChoice],
    sampler: LearnedSampler,
    seed: int,
    epochs: int,
    noise: float,
) -> tuple[list[int], float]:
    """Search by gradients, and return the pick's options and the CPU seconds that it took.

    Args:
        make: Makes the network, once the seed is set.
        space: What may vary in it.
        sampler: The setting.
        seed: Of the weights, the order of the batches and the split.
        epochs: Of the search.
        noise: Of the digits.
    """
    torch.manual_seed(seed)
    loader = loader_of(32, noise)
    num_steps = int((1.0 - sampler.steps.held_out) * len(loader)) * epochs
    module = Classifier(make(), num_steps)
    selection = Selection(evaluations=1, recalibration_batches=0)  # what the parameters stand for, and nothing else
    callback = NASSupernet(space=space, sampler=sampler, selection=selection, search_at="call", seed=seed)
    trainer = quiet_trainer([callback], max_epochs=epochs)
    began = time.thread_time()
    trainer.fit(module, loader)
    seconds = time.thread_time() - began
    result = callback.search(trainer, module, dataloaders=[], score=lambda model: 0.0)
    return list(result.pick.architecture.values()), seconds


def gradient_pick(folder: Path, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Where the pick of DARTS, as it comes, ranks among all members of the cell space.

    Random search draws as many members as fit into the time of one gradient-based search, trains them, and takes the
    best; it knows their accuracies without noise.

    Args:
        folder: Of what is kept: ``cell_members.json`` is made, or gone on with, if members are missing.
        seeds: Of the searches.
    """
    quiet()
    accuracy = members(folder)
    ranked = sorted(accuracy, key=accuracy.__getitem__, reverse=True)
    picks = [searched(CellNet, cell_space(), DARTS(), seed, EPOCHS, NOISE) for seed in seeds]
    ranks = [ranked.index(",".join(map(str, options))) + 1 for options, _ in picks]
    seconds = statistics.median(seconds for _, seconds in picks)
    largest = max(ranked, key=lambda key: count_parameters(_member(key)))
    torch.manual_seed(0)
    began = time.thread_time()
    data, chosen = noisy_digits(), random.Random(0).sample(ranked, 12)
    for key in chosen:
        trained_accuracy(_member(key), data, 0)
    one = (time.thread_time() - began) / len(chosen)
    num_drawn = max(1, round(seconds / one))
    return {
        "gradient_pick_percentile": 100.0 * max(ranks) / len(ranked),
        "gradient_pick_ranks": ranks,
        "members": len(ranked),
        "rank_of_the_largest": ranked.index(largest) + 1,
        "seconds_of_a_search": seconds,
        "seconds_of_a_member": one,
        # The best of n uniform draws is better than a share 2 ** (-1 / n) of all in half of the cases.
        "random_percentile_same_time": 100.0 * (1.0 - 0.5 ** (1.0 / num_drawn)),
        "random_percentile_same_samples": 50.0,  # a search reads as many images as the training of one member
    }


def _member(key: str) -> CellNet:
    return CellNet(tuple(OPERATIONS[int(option)] for option in key.split(",")))


class DeepNet(nn.Module):
    """A stem, twenty convolutions one after another, and a head."""

    def __init__(self, operations: Sequence[str] = ("convolution",) * DEPTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        self.layers = nn.Sequential(*map(operation, operations))
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, shape [N, 10]."""
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


def collapse(seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Share of skip connections in the pick of DARTS, with the guard and without it: same space, same seeds.

    Each of twenty layers is a convolution or a skip connection. Both picks are trained on their own as well.
    """
    quiet()
    steps = ArchitectureSteps(learning_rate=0.03)
    names = [f"net.layers.{place}" for place in range(DEPTH)]
    space = {"layers": OperationChoice(targets=Targets(include=names), candidates={"skip": nn.Identity})}
    figures: dict[str, Any] = {}
    for name, sampler in (("guarded", DARTS(steps=steps)), ("unguarded", DARTS(steps=steps, auxiliary_skip=None))):
        picks = [searched(DeepNet, space, sampler, seed, 4 * EPOCHS, 0.5)[0] for seed in seeds]
        shares = [sum(options) / DEPTH for options in picks]
        accuracies = []
        for seed, options in zip(seeds, picks, strict=True):
            torch.manual_seed(seed)
            chosen = ["skip" if option else "convolution" for option in options]
            accuracies.append(trained_accuracy(DeepNet(chosen), noisy_digits(0.5), seed))
        figures[f"skip_share_{name}"] = shares
        figures[f"collapsed_{name}"] = sum(share >= 0.5 for share in shares)
        figures[f"accuracy_{name}"] = statistics.mean(accuracies)
    return figures
