"""How much of the gap between a student and its teacher does each loss close?

    python -m benchmarks.distillation_accuracy [--arms ARM ...] [--seeds 0 1 2] [--quick] [--out FILE]

The first 10,000 images of Fashion-MNIST as they are, 10 epochs, batches of 128, AdamW under one cycle of its learning
rate. Teacher and student are residual nets of widths 24, 48, 96 and 8, 16, 32: the student computes a ninth. Every arm
has six tries, judged on 5,000 other images with seed 0, then every seed of ``--seeds`` with the best one; a seed gives
the weights, the order of the images, and the teacher, which was trained with that seed:

- teacher, student: six learning rates.
- each loss, beside the student's own: three weights a factor of 4 apart, then three higher learning rates.
  Those that look inside compare the last stage, ``attention_map`` every stage. Losses of attention and of tokens need
  other networks: ``benchmarks.distillation_language``.
- pair: the best loss by the mean over the seeds on those 5,000 images together with the next best two and with the best
  of the other kind (of outputs, or of insides), then the other learning rates.

``test`` is the accuracy on the 10,000 test images, in percent. ``closed`` is the share of the gap from student to
teacher, ``error`` its standard error over the seeds as a ratio of two means; ``gap_closed`` is that of the arm, pair or
single, that is best on the 5,000 images. All losses read the teacher's answers from a cache, features too. ``--out``
keeps what is done, with a gigabyte of answers in a folder beside it, and a second call goes on from there.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.clothes import Clothes, Training, judged, small_residual_net
from benchmarks.common import add_study, parser_for, quiet
from benchmarks.study import Kept
from lightning_optim import DistillationTeacher
from lightning_optim.cost import count_macs
from lightning_optim.distillation import (
    CRD,
    DIST,
    DKD,
    PKT,
    RKD,
    VID,
    AnswerCache,
    AttentionMap,
    ChannelWise,
    GeneralizedJSD,
    Hint,
    Huber,
    Loss,
    MeanSquaredError,
    ReverseKL,
    SimilarityPreserving,
    SoftTarget,
)

TEACHER, STUDENT = (24, 48, 96), (8, 16, 32)
LAST = {"student": "net.layers.2", "teacher": "layers.2"}
EVERY = {"student": "net.layers.*", "teacher": "layers.*"}
RATES = (1e-2, 2e-2, 4e-2, 8e-2)  # the first is that of the search over weights
ALONE_RATES = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 1.6e-1)
FACTORS = (0.25, 1.0, 4.0)

# Each with a weight of the size that its paper, or the size of its values, suggests.
OUTPUT_LOSSES: Mapping[str, tuple[Loss, float]] = {
    "soft_target": (SoftTarget(), 1.0),
    "soft_target_standardized": (SoftTarget(standardize=True), 1.0),
    "mean_squared_error": (MeanSquaredError(), 0.2),
    "huber": (Huber(), 0.4),
    "dkd": (DKD(), 1.0),
    "dist": (DIST(), 2.0),
    "reverse_kl": (ReverseKL(temperature=4.0), 1.0),
    "generalized_jsd": (GeneralizedJSD(temperature=4.0), 2.0),
}
INSIDE_LOSSES: Mapping[str, tuple[Loss, float]] = {
    "hint": (Hint(**LAST), 4.0),
    "attention_map": (AttentionMap(**EVERY), 10.0),
    "rkd": (RKD(**LAST), 25.0),
    "pkt": (PKT(**LAST), 250.0),
    "similarity_preserving": (SimilarityPreserving(**LAST), 3000.0),
    "crd": (CRD(**LAST), 0.8),
    "channel_wise": (ChannelWise(**LAST), 1.0),
    "vid": (VID(**LAST), 1.0),
}
LOSSES = {**OUTPUT_LOSSES, **INSIDE_LOSSES}
ARMS = ("teacher", "student", *LOSSES, "pair")
Figures = dict[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class Try:
    """One setting of an arm: the learning rate, and the weight of each loss."""

    lr: float
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name among the results."""
        return " ".join([f"lr={self.lr:g}", *(f"{name}={weight:g}" for name, weight in self.weights.items())])


@final
class Study:
    """Fits of all arms.

    Args:
        kept: What is done.
        images: Images to train on.
        epochs: Epochs of each fit.
        folder: For the teachers' answers.
    """

    def __init__(self, kept: Kept, images: int, epochs: int, folder: Path) -> None:
        self.kept, self.training, self.folder = kept, Training(epochs=epochs, lr=RATES[0]), folder
        self.data = Clothes(images)
        self._teachers: dict[int, nn.Module] = {}

    def fit(self, arm: str, tried: Try, seed: int) -> Figures:
        """Accuracies of an arm with one setting and one seed."""

        def measure() -> Figures:
            widths = TEACHER if arm == "teacher" else STUDENT
            callbacks = self._callbacks(tried, seed) if tried.weights else []
            training = replace(self.training, lr=tried.lr)
            net = self.data.fit(lambda: small_residual_net(*widths), callbacks, training, seed).net
            if arm == "teacher":
                self._keep_teacher(seed, tried, net)
            found = judged(net, self.data)
            print(f"{arm} {tried.key} seed {seed}: {found['validation']:.2f} {found['test']:.2f}", flush=True)
            return found

        return dict(self.kept.once(f"{arm}/{tried.key}/{seed}", measure))

    def best(self, arm: str, tries: Sequence[Try]) -> Try:
        """The try of the highest accuracy with seed 0."""
        return max(tries, key=lambda tried: self.fit(arm, tried, 0)["validation"])

    def tuned(self, arm: str) -> Try:
        """The best of an arm's six tries."""
        if arm in ("teacher", "student"):
            return self.best(arm, [Try(lr=lr) for lr in ALONE_RATES])
        weight = LOSSES[arm][1]
        return self.at_rates(arm, [Try(lr=RATES[0], weights={arm: weight * factor}) for factor in FACTORS])

    def at_rates(self, arm: str, tries: Sequence[Try]) -> Try:
        """The best of some tries at one learning rate, or that one at the others."""
        best = self.best(arm, tries)
        return self.best(arm, [best, *(replace(best, lr=lr) for lr in RATES[1:])])

    def _callbacks(self, tried: Try, seed: int) -> list[Callback]:
        losses = {name: LOSSES[name][0] for name in tried.weights}
        kept = sorted({answer_of(name) for name in losses})
        cache = AnswerCache(folder=self.folder / f"{seed}.{'.'.join(kept)}")
        teacher = copy.deepcopy(self._teacher(seed))
        return [DistillationTeacher(teacher=teacher, losses=losses, weight=tried.weights, hard_weight=1.0, cache=cache)]

    def _teacher(self, seed: int) -> nn.Module:
        """The teacher of a seed, trained with the best of the teacher's tries."""
        if seed not in self._teachers:
            tried = self.tuned("teacher")
            self.fit("teacher", tried, seed)
            net = small_residual_net(*TEACHER)
            net.load_state_dict(torch.load(self._path(seed, tried), weights_only=True))
            self._teachers[seed] = net
        return self._teachers[seed]

    def _keep_teacher(self, seed: int, tried: Try, net: nn.Module) -> None:
        torch.save(net.state_dict(), self._path(seed, tried))

    def _path(self, seed: int, tried: Try) -> Path:
        return self.folder / f"teacher{seed}.{tried.key.replace(' ', '.')}.pt"


def answer_of(loss: str) -> str:
    """What a loss reads of the teacher's answer."""
    if loss in OUTPUT_LOSSES:
        return "outputs"
    return "every" if loss == "attention_map" else "last"


def row_of(study: Study, arm: str, tried: Try, seeds: Sequence[int]) -> Figures:
    """Accuracies of an arm with every seed."""
    found = [study.fit(arm, tried, seed) for seed in seeds]
    return {
        "setting": tried.key,
        "test": [each["test"] for each in found],
        "validation": statistics.mean(each["validation"] for each in found),
        "weights": dict(tried.weights),
    }


def pair_of(study: Study, rows: Mapping[str, Figures]) -> Try:
    """The best pair of losses that were measured."""
    ranked = sorted(rows.keys() & LOSSES.keys(), key=lambda name: (-rows[name]["validation"], name))
    first, others = ranked[0], ranked[1:]
    partners = others[:2]
    of_other_kind = [name for name in others[2:] if (name in INSIDE_LOSSES) != (first in INSIDE_LOSSES)]
    weights = {name: rows[name]["weights"][name] for name in ranked}
    pairs = [{name: weights[name] for name in (first, partner)} for partner in [*partners, *of_other_kind[:1]]]
    return study.at_rates("pair", [Try(lr=RATES[0], weights=pair) for pair in pairs])


def rows_of(study: Study, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Figures]:
    """Accuracies of every arm."""
    rows: dict[str, Figures] = {}
    for arm in arms:
        tried = pair_of(study, rows) if arm == "pair" else study.tuned(arm)
        rows[arm] = row_of(study, arm, tried, seeds)
    return rows


def summarize(rows: Mapping[str, Figures]) -> Figures:
    """The gap, the share of it that each arm closes, and that of the arm that is best where settings are chosen."""
    means = {arm: statistics.mean(row["test"]) for arm, row in rows.items()}
    gap = means["teacher"] - means["student"]
    closed = {arm: (means[arm] - means["student"]) / gap for arm in rows if arm not in ("teacher", "student")}
    errors = {arm: error_of(rows[arm]["test"], rows["student"]["test"], rows["teacher"]["test"]) for arm in closed}
    best = max(closed, key=lambda arm: rows[arm]["validation"], default=None)
    return {
        "gap": gap,
        "gap_closed": None if best is None else closed[best],
        "gap_closed_by": None if best is None else rows[best]["setting"],
        "closed": closed,
        "closed_errors": errors,
    }


def error_of(arm: Sequence[float], student: Sequence[float], teacher: Sequence[float]) -> float | None:
    """Standard error over seeds of the share that is closed, a ratio of two means; ``None`` of one seed."""
    gains, gaps = ([a - b for a, b in zip(each, student, strict=True)] for each in (arm, teacher))
    if len(gains) < 2:
        return None
    share, gap = statistics.mean(gains) / statistics.mean(gaps), statistics.mean(gaps)
    rest = [gain - share * each for gain, each in zip(gains, gaps, strict=True)]
    return statistics.stdev(rest) / len(rest) ** 0.5 / abs(gap)


def show(rows: Mapping[str, Figures], summary: Mapping[str, Any]) -> None:
    """Print the table."""
    table = Table(title=f"Test accuracy of a student, in percent; the gap to its teacher is {summary['gap']:.2f}")
    for name in ("arm", "setting", "seeds", "mean", "closed", "error"):
        table.add_column(name, justify="left" if name in ("arm", "setting") else "right")
    for arm, row in rows.items():
        closed = f"{summary['closed'][arm]:.0%}" if arm in summary["closed"] else ""
        error = summary["closed_errors"].get(arm)
        seeds = " ".join(f"{value:.2f}" for value in row["test"])
        table.add_row(
            arm,
            row["setting"],
            seeds,
            f"{statistics.mean(row['test']):.2f}",
            closed,
            "" if error is None else f"{error:.0%}",
        )
    Console(width=120).print(table)


def macs_ratio() -> float:
    """Computation of the teacher over the student's."""
    teacher, student = (
        count_macs(small_residual_net(*widths), (torch.zeros(1, 1, 28, 28),)) for widths in (TEACHER, STUDENT)
    )
    return teacher / student


def measure_arms(arms: Sequence[str], seeds: Sequence[int], out: Path | None, *, quick: bool) -> Figures:
    """Train, print the table, and return the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else out.with_suffix(".teachers")
        folder.mkdir(parents=True, exist_ok=True)
        images, epochs = (1000, 2) if quick else (10_000, 10)
        rows = rows_of(
            Study(Kept(out, {"images": images, "epochs": epochs}), images, epochs, folder),
            ["teacher", "student", *arms],
            seeds,
        )
    summary = summarize(rows)
    show(rows, summary)
    return {"macs_ratio": macs_ratio(), **summary}


def measure(folder: Path | None, quick: bool) -> Figures:
    """Figures of all arms with three seeds, kept in a folder if one is given."""
    out = None if folder is None else folder / "distillation_accuracy.json"
    return measure_arms(ARMS[2:], (0, 1, 2), out, quick=quick)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS[2:], default=list(ARMS[2:]), help="besides teacher, student")
    add_study(parser)
    options = parser.parse_args()
    arms = [arm for arm in ARMS if arm in options.arms]
    if "pair" in arms and len(arms) < 3:
        parser.error("a pair is made of losses that were measured: give two of them at least")
    quiet()
    found = measure_arms(arms, options.seeds, options.out, quick=options.quick)
    print(json.dumps({"benchmark": "distillation_accuracy", **found}))


if __name__ == "__main__":
    main()
