"""Is it better to search by what an architecture is worth quantized?

    python -m benchmarks.search_quantized [--seeds 0 1 2] [--quick] [--out FOLDER]

The digits of scikit-learn, 400 of them to choose by. One space of widths of a small residual net, at most 12,000
weights, which is 12 kB in int8. Both arms train 60 architectures for four epochs each, proposed by the pairwise
surrogate, and pick the one of the lowest validation loss; a seed gives the weights, the order of the images and what is
proposed:

- joint: every trial is trained with simulated int8 from its first step, and judged so.
- float: trials are trained and judged in floating point.

Both picks are then trained alike, from scratch: 25 epochs in floating point, 8 with simulated int8, and exported.
``test`` is the accuracy of the int8 file on the 450 test images, by writers that training never saw, in percent;
``gain`` is the mean of joint minus float, beside the standard error of their difference over the seeds. ``--out`` keeps
every search and every training, and a second call goes on from there.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from benchmarks.common import add_study, parser_for, quiet
from lightning_optim import NASSupernet, QATFakeQuant, Targets
from lightning_optim.cost import Parameters
from lightning_optim.demo import Classifier, Digits, ResidualNet
from lightning_optim.nas import ElasticWidth, Selection
from lightning_optim.recipe import Recipe, Stage, TrialSearch
from lightning_optim.search import PairwiseSurrogate

ARMS = ("joint", "float")
MAX_WEIGHTS = 12_000
CPU = partial(Trainer, accelerator="cpu", devices=1)


def make_module() -> LightningModule:
    """The space's largest network."""
    return Classifier(ResidualNet(widths=(16, 32, 48)), memory_format="contiguous")


def searcher(evaluations: int, seed: int) -> NASSupernet:
    """What may vary, and how it is judged."""
    widths = ElasticWidth(targets=Targets(exclude=["net.head"]), fractions=(0.125, 0.25, 0.375, 0.5, 0.75, 1.0))
    selection = Selection(
        monitor="val/loss", mode="min", cost=Parameters(), max_cost=MAX_WEIGHTS, evaluations=evaluations
    )
    example = torch.zeros(2, 1, 16, 16)
    strategy = PairwiseSurrogate()
    return NASSupernet(space={"width": widths}, selection=selection, strategy=strategy, seed=seed, example=example)


def pick_of(arm: str, seed: int, folder: Path, *, evaluations: int, epochs: int) -> dict[str, int]:
    """Search by trials."""

    def make_trainer(**keywords: Any) -> Trainer:
        callbacks: list[Callback] = [QATFakeQuant()] if arm == "joint" else []
        return CPU(callbacks=callbacks, **keywords)

    made = searcher(evaluations, seed)
    trials = TrialSearch(
        searcher=made,
        make_module=make_module,
        make_trainer=make_trainer,
        data=Digits(seed=seed, num_validation=400),
        folder=folder,
        epochs=epochs,
    )
    return dict(trials.run().pick.architecture)


def trained(architecture: dict[str, int], seed: int, folder: Path, epochs: tuple[int, int]) -> dict[str, float]:
    """Train a pick from scratch, then for int8; figures of the int8 file."""

    def fresh() -> LightningModule:
        made = searcher(1, seed)
        module = make_module()
        made.convert(module)
        extracted = made.extract(module, architecture)
        assert isinstance(extracted, LightningModule)
        return extracted

    stages = [
        Stage(name="base", kind="train", make_trainer=partial(CPU, max_epochs=epochs[0]), make_callbacks=lambda _: []),
        Stage(
            name="qat",
            kind="qat",
            make_trainer=partial(CPU, max_epochs=epochs[1]),
            make_callbacks=lambda _: [QATFakeQuant()],
            settings={"lr": 1e-3},
        ),
    ]
    data = Digits(seed=seed, num_validation=400)
    recipe = Recipe(
        stages=stages, make_module=fresh, data=data, folder=folder, seed=seed, console=Console(file=StringIO())
    )
    base, qat = (done.result for done in recipe.run())
    return {
        "test": 100.0 * qat.test_accuracy,
        "float": 100.0 * base.test_accuracy,
        "bytes": float(qat.bytes),
        "weights": float(qat.parameters),
    }


def measure_arms(seeds: Sequence[int], folder: Path, *, quick: bool) -> dict[str, Any]:
    """Search and train, print the table, and return the figures."""
    evaluations, epochs, last = (3, 1, (1, 1)) if quick else (60, 4, (25, 8))
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            place = folder / f"{arm}-{seed}"
            picked = pick_of(arm, seed, place / "search", evaluations=evaluations, epochs=epochs)
            rows[arm].append(trained(picked, seed, place / "pick", last))
    table = Table(title="Architectures searched in int8 and in floating point, then trained alike for int8")
    for heading in (
        "searched in",
        "int8 test %, mean",
        "each seed",
        "float test %, mean",
        "weights",
        "bytes of the file",
    ):
        table.add_column(heading, justify="left" if heading == "searched in" else "right")
    for arm, row in rows.items():
        each = ", ".join(f"{entry['test']:.2f}" for entry in row)
        sizes = [", ".join(f"{entry[key]:,.0f}" for entry in row) for key in ("weights", "bytes")]
        means = [f"{statistics.fmean(entry[key] for entry in row):.2f}" for key in ("test", "float")]
        table.add_row(arm, means[0], each, means[1], *sizes)
    Console().print(table)
    differences = [joint["test"] - alone["test"] for joint, alone in zip(rows["joint"], rows["float"], strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    gain = statistics.fmean(differences)
    return {"joint_gain": round(gain, 3), "joint_error": None if math.isnan(error) else round(error, 3), "arms": rows}


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    add_study(parser)
    options = parser.parse_args()
    quiet()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.out is None else options.out
        found = measure_arms(options.seeds, folder, quick=options.quick)
    print(json.dumps({"benchmark": "search_quantized", **found}))


if __name__ == "__main__":
    main()
