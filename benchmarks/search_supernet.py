"""Supernets: how well their paths rank, and what a step costs.

Called by ``benchmarks.search``. The space has 64 members: three choices among four operations; the digits have noise.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import quiet, quiet_trainer
from benchmarks.search_gradient import CHANNELS, Classifier, loader_of, noisy_digits, operation, trained_accuracy
from lightning_optim import NASSupernet, Targets
from lightning_optim.atomic import write_atomic
from lightning_optim.cost import count_parameters
from lightning_optim.nas import ElasticWidth, OperationChoice, Sampler, SearchDimension, UniformSampling

OPERATIONS = ("convolution", "point", "skip", "depthwise")
SEEDS = (0, 1)
EPOCHS, BATCH = 60, 64


class ChainNet(nn.Module):
    """A stem, three operations one after another, and a head.

    Args:
        operations: Their names.
    """

    def __init__(self, operations: Sequence[str] = ("convolution",) * 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        self.chain = nn.Sequential(*map(operation, operations))
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, shape [N, 10]."""
        return self.head(self.chain(self.stem(x)).mean((2, 3)))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings.

    Example:
        >>> kendall_tau([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
        0.3333333333333333
    """
    pairs = list(itertools.combinations(zip(first, second, strict=True), 2))
    signs = [((a > b) - (a < b), (x > y) - (x < y)) for (a, x), (b, y) in pairs]
    ties = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    return sum(a * b for a, b in signs) / (ties[0] * ties[1]) ** 0.5


def chains() -> list[tuple[int, ...]]:
    """Every member of the space: the index of each operation."""
    return list(itertools.product(range(len(OPERATIONS)), repeat=3))


def chain_of(options: Sequence[int]) -> ChainNet:
    """A member of the space, untrained."""
    return ChainNet([OPERATIONS[option] for option in options])


def alone(folder: Path) -> dict[int, list[float]]:
    """Accuracy of each member trained on its own, by seed; what is done is kept in ``chain_members.json``."""
    path, data = folder / "chain_members.json", noisy_digits()
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}
    for seed in SEEDS:
        done = known.setdefault(str(seed), [])
        for options in chains()[len(done) :]:
            torch.manual_seed(seed)
            done.append(trained_accuracy(chain_of(options), data, seed))
            write_atomic(path, json.dumps(known).encode())
    return {seed: known[str(seed)] for seed in SEEDS}


def chain_space() -> dict[str, OperationChoice]:
    """The space as it is declared."""
    others = {name: lambda name=name: operation(name) for name in OPERATIONS[1:]}
    names = [f"net.chain.{place}" for place in range(3)]
    return {"chain": OperationChoice(targets=Targets(include=names), candidates=others)}


def trained_supernet(sampler: Sampler, seed: int, epochs: int = EPOCHS) -> tuple[Classifier, NASSupernet]:
    """Train a supernet of the space."""
    torch.manual_seed(seed)
    loader = loader_of(BATCH)
    module = Classifier(ChainNet(), len(loader) * epochs)
    callback = NASSupernet(space=chain_space(), sampler=sampler, search_at="call", seed=seed)
    quiet_trainer([callback], max_epochs=epochs).fit(module, loader)
    return module, callback


def supernet_scores(module: Classifier, callback: NASSupernet, *, recalibrates: bool = True) -> list[list[float]]:
    """Accuracy, and loss with its sign turned, of each member with the supernet's weights.

    Args:
        module: The supernet.
        callback: Knows its paths.
        recalibrates: Whether each member gets batch-norm statistics of its own first.
    """
    x, _, other_x, other_y = noisy_digits()
    accuracies, gains = [], []
    for options in chains():
        subnet = callback.extract(module, dict(zip(callback.supernet.default, options, strict=True)))
        if recalibrates:
            _recalibrate(subnet, x)
        with torch.no_grad():
            logits = subnet.eval()(other_x)
        accuracies.append(float((logits.argmax(1) == other_y).float().mean()))
        gains.append(-float(F.cross_entropy(logits, other_y)))
    return [accuracies, gains]


def _recalibrate(subnet: nn.Module, x: Tensor) -> None:
    norms = [module for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    subnet.train()
    with torch.no_grad():
        for batch in x.split(BATCH):
            subnet(batch)


def ranking(folder: Path, sampler: Sampler | None = None, epochs: int = EPOCHS) -> dict[str, float]:
    """Kendall's tau between a supernet's scores and the accuracies of members trained on their own.

    The score is the validation loss of a member with the weights that it inherits; those by accuracy stand beside.

    Args:
        folder: Of what is kept.
        sampler: Trains the supernet; ``None`` is one path a step, drawn uniformly.
        epochs: Of the supernet.
    """
    quiet()
    by_seed = alone(folder)
    truth = [statistics.mean(each) for each in zip(*by_seed.values(), strict=True)]
    sizes = [float(count_parameters(chain_of(options))) for options in chains()]
    taus: dict[str, list[float]] = {}
    began = time.process_time()
    for seed in (0, 1, 2):
        module, callback = trained_supernet(UniformSampling() if sampler is None else sampler, seed, epochs)
        for suffix, recalibrates in (("", True), ("_without_recalibration", False)):
            by_accuracy, by_loss = supernet_scores(module, callback, recalibrates=recalibrates)
            taus.setdefault(f"supernet_tau{suffix}", []).append(kendall_tau(by_loss, truth))
            taus.setdefault(f"supernet_tau_by_accuracy{suffix}", []).append(kendall_tau(by_accuracy, truth))
    return {
        **{name: statistics.mean(found) for name, found in taus.items()},
        "supernet_tau_lowest": min(taus["supernet_tau"]),
        "tau_of_parameters": kendall_tau(sizes, truth),
        "tau_seed_to_seed": kendall_tau(*by_seed.values()),
        "seconds_a_supernet": (time.process_time() - began) / 3,
    }


def _step_seconds(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each step, all sides of a round within moments of each other."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            began = time.thread_time()
            steps[name]()
            if turn > 1:
                seconds[name].append(time.thread_time() - began)
    return seconds


def _training_step(network: nn.Module, x: Tensor) -> Callable[[], object]:
    def step() -> None:
        network.zero_grad()
        F.cross_entropy(network(x), torch.zeros(len(x), dtype=torch.long)).backward()

    return step


class WideNet(nn.Module):
    """Six convolutions, each with its norm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [3, *[width] * 6]
        self.layers = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(before, after, 5, padding=2), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in itertools.pairwise(sizes)
        ))  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, shape [N, 10]."""
        return self.head(self.layers(x).mean((2, 3)))


def step_ratios(rounds: int = 30) -> dict[str, float]:
    """How many times longer a path's training step takes than that of the plain network which it stands for.

    Args:
        rounds: In each, both steps are measured within moments of each other.
    """
    quiet()
    x = torch.randn(32, 3, 32, 32)
    layers = [f"net.layers.{place}" for place in range(6)]
    width = {"width": ElasticWidth(targets=Targets(exclude=["net.head"]), fractions=(0.25, 0.5, 1.0))}
    six = {
        place: OperationChoice(targets=Targets(include=[name]), candidates={
            f"other{number}": WideNet().layers[0 if place == "first" else 1] for number in range(4)
        })
        for place, name in zip(("first", *"bcdef"), layers, strict=True)
    }  # fmt: skip
    return {
        key: value
        for name, space in (("sliced_step_ratio", width), ("six_choices_step_ratio", six))
        for key, value in _ratio(name, space, x, rounds).items()
    }


def _ratio(name: str, space: Mapping[str, SearchDimension], x: Tensor, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    module = Classifier(WideNet(), 1)
    callback = NASSupernet(space=space, example=x[:2], network="net", search_at="call")
    supernet = callback.convert(module)
    path = {decision.name: 1 for decision in supernet.decisions}
    plain = callback.extract(module, path)
    supernet.activate(path)
    with torch.no_grad():
        is_equal = torch.equal(plain.eval()(x), module.eval()(x))
    steps = {"path": _training_step(module.train(), x), "plain": _training_step(plain.train(), x)}
    seconds = _step_seconds(steps, rounds)
    ratios = [mine / theirs for mine, theirs in zip(seconds["path"], seconds["plain"], strict=True)]
    return {name: statistics.median(ratios), f"{name}_extraction_is_equal": float(is_equal)}
