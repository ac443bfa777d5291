"""What does a training step with each regularizer cost, beside the plain step?

    python -m benchmarks.regularization_step [--batch-size 128] [--steps 6] [--rounds 4]

ResNet-20 on random images of 32 x 32, every variant in turns within one process on one thread. A step is timed in CPU
time, from the end of one batch to the end of the next; ratios are of medians, and ``control`` is the plain step again.
The net lies in torch's default layout: in ``channels_last``, a step with ``jacobian`` takes some five times as long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.common import parser_for, quiet, show_figures
from benchmarks.residual_nets import CifarResNet
from benchmarks.steps import beside_plain, seconds_of_steps
from lightning_optim import PenaltyRegularizer, SharpnessAware
from lightning_optim.regularization import (
    L1,
    L2,
    SAM,
    GroupLasso,
    Jacobian,
    Orthogonal,
    Penalty,
    Slimming,
    SpectralNorm,
)

PENALTIES: dict[str, Callable[[], Penalty]] = {
    "l1": L1,
    "l2": L2,
    "group_lasso": GroupLasso,
    "slimming": Slimming,
    "orthogonal": Orthogonal,
    "spectral_norm": SpectralNorm,
    "jacobian": Jacobian,
}


def variants() -> dict[str, Callable[[], Sequence[Callback]]]:
    """Callbacks of every variant."""

    def penalize(penalty: Callable[[], Penalty]) -> Callable[[], Sequence[Callback]]:
        return lambda: [PenaltyRegularizer(penalties=penalty(), strength=1e-4)]

    found: dict[str, Callable[[], Sequence[Callback]]] = {"plain": list, "control": list}
    found |= {name: penalize(penalty) for name, penalty in PENALTIES.items()}
    return found | {"sam": lambda: [SharpnessAware(sharpness=SAM())]}


def measure(batch_size: int = 128, steps: int = 6, rounds: int = 4) -> Mapping[str, Any]:
    """Ratio of each variant's step to the plain one."""
    seconds = seconds_of_steps(variants(), CifarResNet, (3, 32, 32), batch_size=batch_size, steps=steps, rounds=rounds)
    return {f"{name}_step_ratio": ratio for name, (ratio, _) in beside_plain(seconds).items() if name != "plain"}


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each variant")
    options = parser.parse_args()
    quiet()
    found = measure(options.batch_size, options.steps, options.rounds)
    show_figures("A step with a regularizer", found)
    print(json.dumps({"benchmark": "regularization_step", "torch": torch.__version__, **found}))


if __name__ == "__main__":
    main()
