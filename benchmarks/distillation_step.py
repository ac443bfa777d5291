"""What does a training step with a teacher cost, beside the plain step?

    python -m benchmarks.distillation_step [--batch-size 32] [--steps 8] [--rounds 6]

The student is ResNet-20, the teacher ResNet-32 of twice its width, both on random images of 32 x 32, in turns within
one process on one thread. A step is timed in CPU time, from the end of one batch to the end of the next; ratios are of
medians. Networks lie in torch's default layout.

- teacher: as it comes. ``compiled``: with ``compile=True``, its weights as constants. ``bf16``: in bfloat16
  besides, where the processor has it (or a GPU is there), else null.
- free: a teacher that answers at no cost, with batches of 128: what is left is the callback's own time, in ms a step.
  ``callback_noise_ms`` is what the same measurement says of no callback.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from benchmarks.common import parser_for, quiet, show_figures
from benchmarks.overhead import FreeTeacher
from benchmarks.residual_nets import CifarResNet
from benchmarks.steps import beside_plain, seconds_of_steps
from lightning_optim import DistillationTeacher
from lightning_optim.distillation import ModuleTeacher

SHAPE = (3, 32, 32)
FREE_BATCH = 128


class SmallNet(nn.Module):
    """A net whose step is short, so that a fraction of a millisecond can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, 10]``."""
        return self.layers(x)


def has_bf16() -> bool:
    """Whether products in bfloat16 are fast here."""
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def teachers() -> dict[str, Callable[[], Sequence[Callback]]]:
    """Variants of a step with the large teacher; a teacher is made once, and compiled once."""
    net = CifarResNet(32, 32)
    found = {
        "teacher": ModuleTeacher(module=net),
        "compiled": ModuleTeacher(module=CifarResNet(32, 32), compile=True),
    }
    if has_bf16():
        found["bf16"] = ModuleTeacher(module=CifarResNet(32, 32), compile=True, precision="bfloat16")
    return {name: (lambda each=each: [DistillationTeacher(teacher=each)]) for name, each in found.items()}


def measure_callback(steps: int = 60, rounds: int = 6) -> dict[str, float]:
    """Time of the callback alone."""
    variants: dict[str, Callable[[], Sequence[Callback]]] = {
        "plain": list,
        "control": list,
        "free": lambda: [DistillationTeacher(teacher=FreeTeacher(FREE_BATCH))],
    }
    seconds = seconds_of_steps(variants, SmallNet, SHAPE, batch_size=FREE_BATCH, steps=steps, rounds=rounds)
    found = beside_plain(seconds)
    return {"callback_ms": found["free"][1], "callback_noise_ms": found["control"][1]}


def measure(batch_size: int = 32, steps: int = 8, rounds: int = 6) -> Mapping[str, Any]:
    """Figures of a step with a teacher."""
    variants = {"plain": list, "control": list, **teachers()}
    seconds = seconds_of_steps(variants, CifarResNet, SHAPE, batch_size=batch_size, steps=steps, rounds=rounds)
    found = beside_plain(seconds)
    return {
        "kd_step_control": found["control"][0],
        "kd_step_ratio_eager": found["teacher"][0],
        "kd_step_ratio_frozen": found["compiled"][0],
        "kd_step_ratio_bf16": found["bf16"][0] if "bf16" in found else None,
        "kd_step_bf16": "measured" if "bf16" in found else "no bf16 here",
        **measure_callback(),
    }


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each variant")
    options = parser.parse_args()
    quiet()
    found = measure(options.batch_size, options.steps, options.rounds)
    show_figures("A step with a teacher", found)
    print(json.dumps({"benchmark": "distillation_step", "torch": torch.__version__, **found}))


if __name__ == "__main__":
    main()
