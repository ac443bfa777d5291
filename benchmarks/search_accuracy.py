"""Does a searched network beat a hand-made one, and which family of search finds it?

    python -m benchmarks.search_accuracy [--seeds 0 1 2] [--quick] [--out FILE]

The first 10,000 images of Fashion-MNIST. One MobileNet-like space of 590,000 networks: ten places, each an inverted
bottleneck of kernel 3 or 5 and expansion 3, or of kernel 3 and expansion 6, or nothing where the place keeps the shape.
``--max-macs`` bounds all searches alike. A seed gives the weights, the order of the images and what is drawn, of
supernets and of networks alike:

- evolution: regularized evolution over a supernet that was trained on uniform single paths, 64 evaluations.
- reinforce: REINFORCE over the same supernet, 64 evaluations.
- gradient: GDAS on a supernet of its own, with the expected MACs in its loss; its pick, and no evaluation beside it.
- hand: ResNet-20, which nobody searched.

Candidates are judged on 5,000 other images. Every pick is trained anew, from scratch, exactly as ResNet-20 is: 10
epochs, AdamW under one cycle of its learning rate, the best of three by the 5,000 images with seed 0, for ResNet-20 and
for the network of kernel 3 and expansion 3 each; supernets are trained with the latter's.

``test`` is the accuracy on the 10,000 test images in percent. Latency is that of the ONNX file in ONNX Runtime, one
thread, all files of a seed in turns: ``faster`` is how many times faster than ResNet-20.
``--out`` keeps what is done, and a second call goes on from there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.clothes import EVALUATION_BATCH, Clothes, Training, judged
from benchmarks.common import add_study, parser_for, quiet, quiet_trainer
from benchmarks.residual_nets import CifarResNet
from benchmarks.study import Kept
from lightning_optim import NASSupernet, Targets
from lightning_optim.cost import count_macs, speedup
from lightning_optim.demo import Classifier
from lightning_optim.export import export_onnx, time_models
from lightning_optim.nas import (
    GDAS,
    ExpectedCost,
    InvertedBottleneck,
    MobileNetLike,
    OperationChoice,
    Selection,
    UniformSampling,
)
from lightning_optim.search import Evolution, Reinforce

HAND, RATES = "hand", (5e-3, 1e-2, 2e-2)
FAMILIES = ("evolution", "reinforce", "gradient")
IMAGE = torch.zeros(1, 1, 28, 28)


def mobile(expansion: int = 6) -> nn.Module:
    """The network that the space is about: ten inverted bottlenecks of kernel 3."""
    return MobileNetLike(widths=(16, 32, 64), depths=(2, 4, 4), kernel=3, expansion=expansion)


def space_of() -> dict[str, OperationChoice]:
    """What may stand at each of the ten places, beside kernel 3 and expansion 6."""
    shapes = {"k3e3": (3, 3), "k5e3": (5, 3)}
    blocks = {name: partial(InvertedBottleneck, kernel=k, expansion=e) for name, (k, e) in shapes.items()}
    halving = ("net.stages.1.0", "net.stages.2.0")
    return {
        "halving": OperationChoice(targets=Targets(include=halving), candidates=blocks),
        "keeping": OperationChoice(
            targets=Targets(include=("net.stages.?.?",), exclude=halving), candidates={**blocks, "skip": nn.Identity}
        ),
    }


class Study:
    """Searches of all families, and the networks that they lead to.

    Args:
        kept: What is done.
        data: Images.
        epochs: Of supernets and of networks.
        evaluations: Of a search.
        max_macs: Bound of all searches.
    """

    def __init__(self, kept: Kept, data: Clothes, *, epochs: int, evaluations: int, max_macs: float) -> None:
        self.kept, self.data, self.epochs = kept, data, epochs
        self.selection = Selection(monitor="val/accuracy", max_cost=max_macs, evaluations=evaluations)

    def rate(self, name: str, net: Callable[[], nn.Module]) -> float:
        """The best of three learning rates for a network, by the images to choose by."""
        tries = {lr: self.kept.once(f"{name} rate {lr:g}", lambda lr=lr: self.judge(net, lr, 0)) for lr in RATES}
        return max(tries, key=lambda lr: tries[lr]["validation"])

    def judge(self, net: Callable[[], nn.Module], lr: float, seed: int) -> dict[str, Any]:
        """Train a network from scratch and judge it."""
        trained = self.data.fit(net, [], Training(epochs=self.epochs, lr=lr), seed)
        return judged(trained.net, self.data)

    def uniform(self, seed: int, lr: float) -> dict[str, dict[str, int]]:
        """Picks of evolution and of REINFORCE over one supernet."""
        callback = NASSupernet(
            space=space_of(), sampler=UniformSampling(), selection=self.selection, search_at="call", seed=seed
        )
        trained = self._supernet(callback, lr, seed)
        found: dict[str, dict[str, int]] = {}
        for family, strategy in (("evolution", Evolution()), ("reinforce", Reinforce())):
            callback.strategy = strategy
            found[family] = self._search(callback, trained)
        return found

    def gradient(self, seed: int, lr: float) -> dict[str, int]:
        """Pick of the architecture parameters."""
        cost = ExpectedCost(target=0.95 * float(self.selection.max_cost or 0.0), weight=1.0)
        alone = Selection(monitor="val/accuracy", max_cost=self.selection.max_cost, evaluations=1)
        callback = NASSupernet(space=space_of(), sampler=GDAS(cost=cost), selection=alone, search_at="call", seed=seed)
        return self._search(callback, self._supernet(callback, lr, seed))

    def net_of(self, architecture: Mapping[str, int], seed: int) -> nn.Module:
        """A fresh network of an architecture."""
        module = Classifier(mobile())
        module.example_input_array = IMAGE
        callback = NASSupernet(space=space_of(), seed=seed)
        callback.convert(module)
        extracted = callback.extract(module, architecture)
        net = extracted.get_submodule("net")
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                layer.reset_parameters()  # from scratch: the draws of the seed that was set last
        return net

    def _supernet(self, callback: NASSupernet, lr: float, seed: int) -> Classifier:
        return self.data.fit(mobile, [callback], Training(epochs=self.epochs, lr=lr), seed)

    def _search(self, callback: NASSupernet, module: Classifier) -> dict[str, int]:
        judge = DataLoader(self.data.validation, EVALUATION_BATCH)
        order = torch.Generator().manual_seed(callback.seed)
        batches = DataLoader(self.data.train, 128, shuffle=True, generator=order)
        result = callback.search(quiet_trainer([callback]), module, judge, batches)
        return dict(result.pick.architecture)


def faster_than_hand(nets: Mapping[str, nn.Module]) -> dict[str, float]:
    """How many times faster than the hand-made network each ONNX file is, at batches of 1 and 32."""
    found: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in nets}
        for name, net in nets.items():
            export_onnx(net.eval(), (IMAGE.repeat(2, 1, 1, 1),), paths[name])
        timings = time_models(paths, IMAGE.numpy(), (1, 32), seconds=20.0)
    for name in nets:
        for batch in (1, 32):
            found[f"{name} b{batch}"] = speedup(timings[HAND][batch], timings[name][batch]).median
    return found


def measure_families(seeds: Sequence[int], out: Path | None, max_macs: float, *, quick: bool) -> dict[str, Any]:
    """Search, train, print the table, and return the figures."""
    images, epochs, evaluations = (500, 1, 4) if quick else (10_000, 10, 64)
    kept = Kept(out, {"images": images, "epochs": epochs, "evaluations": evaluations, "max_macs": max_macs})
    data = Clothes(images)
    if quick:
        data.validation, data.test = (TensorDataset(*part[:500]) for part in (data.validation, data.test))
    study = Study(kept, data, epochs=epochs, evaluations=evaluations, max_macs=max_macs)
    hand = partial(CifarResNet, 20, channels=1)
    rates = {HAND: study.rate(HAND, hand), "space": study.rate("space", partial(mobile, 3))}
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in (HAND, *FAMILIES)}
    for seed in seeds:
        picks = kept.once(f"uniform picks {seed}", partial(study.uniform, seed, rates["space"]))
        picks = {**picks, "gradient": kept.once(f"gradient pick {seed}", partial(study.gradient, seed, rates["space"]))}
        nets = {HAND: hand, **{name: partial(study.net_of, picks[name], seed) for name in FAMILIES}}
        for name, net in nets.items():
            lr = rates[HAND if name == HAND else "space"]
            judged_net = kept.once(f"{name} {seed}", partial(study.judge, net, lr, seed))
            rows[name].setdefault("test", []).append(judged_net["test"])
            rows[name].setdefault("macs", []).append(float(count_macs(net(), (IMAGE,), {})))
        times = kept.once(f"times {seed}", lambda nets=nets: faster_than_hand({k: make() for k, make in nets.items()}))
        for name in nets:
            rows[name].setdefault("faster_b1", []).append(times[f"{name} b1"])
            rows[name].setdefault("faster_b32", []).append(times[f"{name} b32"])
    _show(rows, rates)
    best = max(FAMILIES, key=lambda name: statistics.fmean(rows[name]["test"]))
    means = {name: {key: round(statistics.fmean(values), 3) for key, values in row.items()}
             for name, row in rows.items()}  # fmt: skip
    gain = statistics.fmean(rows[best]["test"]) - statistics.fmean(rows[HAND]["test"])
    return {"search_gain": round(gain, 3), "search_best_family": best, "search_families": means}


def _show(rows: Mapping[str, Mapping[str, Sequence[float]]], rates: Mapping[str, float]) -> None:
    table = Table(title=f"Searched and hand-made networks, 10 epochs from scratch; learning rates {dict(rates)}")
    for heading in ("network", "test %, mean", "each seed", "MACs", "times faster, batch 1", "batch 32"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, row in rows.items():
        each = ", ".join(f"{value:.2f}" for value in row["test"])
        macs = ", ".join(f"{value / 1e6:.1f} M" for value in row["macs"])
        fast = [", ".join(f"{value:.2f}" for value in row[key]) for key in ("faster_b1", "faster_b32")]
        table.add_row(name, f"{statistics.fmean(row['test']):.2f}", each, macs, *fast)
    Console().print(table)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--max-macs", type=float, default=1.6e7, help="bound of all searches; ResNet-20 has 31 million")
    add_study(parser)
    options = parser.parse_args()
    quiet()
    found = measure_families(options.seeds, options.out, options.max_macs, quick=options.quick)
    print(json.dumps({"benchmark": "search_accuracy", **found}))


if __name__ == "__main__":
    main()
