"""What does each regularizer bring a net that has too few images?

    python -m benchmarks.regularization_accuracy [--arms ARM ...] [--seeds 0 1 2 3 4] [--quick] [--out FILE]

ResNet-8 (78 thousand weights) on the first 1,000 images of Fashion-MNIST as they are: 40 epochs, batches of 50, AdamW
without weight decay under one cycle of its learning rate. Every arm has three tries, judged on 5,000 other images with
seed 0, then every seed of ``--seeds`` with the best one; a seed gives the weights, the order of the images and what is
drawn. ``none`` tries three learning rates; the others take the best of them, and try three strengths:

- l2: decoupled, after each optimizer's step. dropout: before the last layer. stochastic_depth: of every block's branch.
- mixup, cutmix: the loss is mixed. label_smoothing: soft labels. sam: sharpness-aware training.

``test`` is the accuracy on the 10,000 test images, in percent; ``gap`` is that on the training images minus it.
``gain`` is the mean test accuracy above that of ``none``, with the pooled standard error of the difference,
``sqrt(s_a**2 / n + s_b**2 / n)``. ``generalization_gain`` is the number of arms whose gain is above that error.
``--out`` keeps what is done, and a second call goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arms import NONE, Arm, Arms, show_rows
from benchmarks.clothes import Clothes, Training
from benchmarks.common import add_study, parser_for, quiet
from benchmarks.residual_nets import CifarResNet
from benchmarks.study import Kept
from lightning_optim import BatchMixer, DropoutScheduler, PenaltyRegularizer, SharpnessAware, Targets
from lightning_optim.regularization import (
    L2,
    SAM,
    CutMix,
    Dropout,
    DropoutMethod,
    LabelSmoothing,
    Mixup,
    StochasticDepth,
)

RATES = (2.5e-3, 5e-3, 1e-2)


def drop(method: DropoutMethod, module: str) -> Arm:
    """Drop from the outputs of some modules."""
    targets = Targets(include=(module,))
    return Arm(make=lambda p: [DropoutScheduler(dropout=method, probability=p, targets=targets)])


ARMS: Mapping[str, Arm] = {
    NONE: Arm(make=lambda _: []),
    "l2": Arm(
        make=lambda strength: [PenaltyRegularizer(penalties=L2(), strength=strength, decoupled=("l2",))],
        strengths=(0.1, 0.5, 2.0),
    ),
    "dropout": replace(drop(Dropout(), "net.stages.2.0"), strengths=(0.1, 0.25, 0.5)),
    "stochastic_depth": replace(drop(StochasticDepth(), "net.stages.*.*.norm2"), strengths=(0.1, 0.2, 0.4)),
    "mixup": Arm(make=lambda alpha: [BatchMixer(mixing=Mixup(alpha=alpha))], strengths=(0.1, 0.3, 1.0)),
    "cutmix": Arm(make=lambda share: [BatchMixer(mixing=CutMix(), probability=share)], strengths=(0.25, 0.5, 1.0)),
    "label_smoothing": Arm(
        make=lambda share: [BatchMixer(mixing=LabelSmoothing(smoothing=share), labels="soft")],
        strengths=(0.05, 0.1, 0.2),
    ),
    "sam": Arm(make=lambda rho: [SharpnessAware(sharpness=SAM(rho=rho))], strengths=(0.05, 0.15, 0.5)),
}

KNOWN = [arm for arm in ARMS if arm != NONE]


def measure_arms(names: Sequence[str], seeds: Sequence[int], out: Path | None, *, quick: bool) -> dict[str, Any]:
    """Train, print the table, and return the figures."""
    images, epochs = (200, 4) if quick else (1000, 40)
    training = Training(epochs=epochs, lr=RATES[0], batch_size=50, weight_decay=0.0)
    kept = Kept(out, {"images": images, "epochs": epochs})
    arms = Arms(kept, Clothes(images), lambda: CifarResNet(8, channels=1), training, RATES, ARMS)
    rows = arms.rows(names, seeds)
    title = f"Accuracy of ResNet-8 on few images, in percent; learning rate {arms.lr:g}"
    show_rows(title, rows, {"gap": lambda row: f"{row['mean_train'] - row['mean_test']:.2f}"})
    gains = {arm: round(row["gain"], 3) for arm, row in rows.items() if arm != NONE}
    above = [arm for arm in gains if rows[arm]["gain"] > rows[arm]["error"]]
    return {"generalization_gain": len(above), "generalization_above": above, "generalization_gains": gains}


def measure(folder: Path | None, quick: bool) -> dict[str, Any]:
    """Figures of all arms with five seeds, kept in a folder if one is given."""
    out = None if folder is None else folder / "regularization_accuracy.json"
    return measure_arms(KNOWN, range(5), out, quick=quick)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--arms", nargs="+", choices=KNOWN, default=KNOWN, help="besides none")
    add_study(parser)
    parser.set_defaults(seeds=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    quiet()
    found = measure_arms(options.arms, options.seeds, options.out, quick=options.quick)
    print(json.dumps({"benchmark": "regularization_accuracy", **found}))


if __name__ == "__main__":
    main()
