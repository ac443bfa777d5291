"""Does a penalty prepare a net for losing most of its channels?

    python -m benchmarks.regularization_pruning [--seeds 0 1 2] [--quick] [--out FILE]

A residual net of widths 24, 48 and 96 on the first 10,000 images of Fashion-MNIST as they are: 12 epochs in all,
batches of 128, AdamW under one cycle of its learning rate. A penalty pulls during the first half; then 70 % of the
channels of every coupled group go in five steps, within a fifth of the fit; the rest heals. Every arm has three tries,
judged on 5,000 other images with seed 0, then every seed of ``--seeds`` with the best one, tested once:

- none: no penalty, three learning rates; channels go by the size of their weights.
- group_lasso: three strengths at the best of those rates; channels go by the size of their weights.
- slimming: likewise, on the scales of batch norms; channels go by these.
- dense: nothing is removed, and no penalty; with the same rate, as a reference.

``gain`` is the mean test accuracy above that of ``none`` in points, with the pooled standard error of the difference.
``--out`` keeps what is done, and a second call goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from benchmarks.arms import NONE, Arm, Arms, show_rows
from benchmarks.clothes import Clothes, Training, small_residual_net
from benchmarks.common import add_study, parser_for, quiet
from benchmarks.study import Kept
from lightning_optim import PenaltyRegularizer, PruningScheduler, Window
from lightning_optim.pruning import BatchNormScale, Channel, Criterion, Magnitude
from lightning_optim.regularization import GroupLasso, Penalty, Slimming
from lightning_optim.schedule import Linear

WIDTHS, SPARSITY = (24, 48, 96), 0.7
RATES = (5e-3, 1e-2, 2e-2)
PULLING, REMOVING = Window(end=0.5), Window(begin=0.5, end=0.7, every=0.04)


def prune(criterion: Criterion | None = None) -> PruningScheduler:
    """Remove most of the channels."""
    return PruningScheduler(
        schedule=Linear(end=SPARSITY), criterion=criterion or Magnitude(), structure=Channel(), window=REMOVING
    )


def prepare(penalty: Penalty, strength: float) -> PenaltyRegularizer:
    """Pull channels towards zero before that."""
    return PenaltyRegularizer(penalties=penalty, strength=strength, window=PULLING)


ARMS: Mapping[str, Arm] = {
    NONE: Arm(make=lambda _: [prune()]),
    "group_lasso": Arm(make=lambda strength: [prepare(GroupLasso(), strength), prune()], strengths=(3e-5, 3e-4, 3e-3)),
    "slimming": Arm(
        make=lambda strength: [prepare(Slimming(), strength), prune(BatchNormScale())], strengths=(1e-4, 1e-3, 1e-2)
    ),
    "dense": Arm(make=lambda _: []),
}


def removed(callbacks: Sequence[Callback]) -> dict[str, float]:
    """Share of the channels that are gone."""
    return {"removed": sum(each.sparsity for each in callbacks if isinstance(each, PruningScheduler))}


def measure_arms(seeds: Sequence[int], out: Path | None, *, quick: bool) -> dict[str, Any]:
    """Train, print the table, and return the figures."""
    images, epochs = (1000, 5) if quick else (10_000, 12)
    training = Training(epochs=epochs, lr=RATES[0])
    kept, data = Kept(out, {"images": images, "epochs": epochs}), Clothes(images)
    arms = Arms(kept, data, lambda: small_residual_net(*WIDTHS), training, RATES, ARMS, removed)
    rows = arms.rows([arm for arm in ARMS if arm != NONE], seeds)
    title = f"Test accuracy with {SPARSITY:.0%} of the channels gone, in percent; learning rate {arms.lr:g}"
    show_rows(title, rows, {"gone": lambda row: f"{row['mean_removed']:.3f}"})
    prepared = [arm for arm in rows if arm not in (NONE, "dense")]
    return {f"{arm}_pruned_{figure}": round(rows[arm][figure], 3) for arm in prepared for figure in ("gain", "error")}


def measure(folder: Path | None, quick: bool) -> dict[str, Any]:
    """Figures of all arms with three seeds, kept in a folder if one is given."""
    out = None if folder is None else folder / "regularization_pruning.json"
    return measure_arms(range(3), out, quick=quick)


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    add_study(parser)
    options = parser.parse_args()
    quiet()
    found = measure_arms(options.seeds, options.out, quick=options.quick)
    print(json.dumps({"benchmark": "regularization_pruning", **found}))


if __name__ == "__main__":
    main()
