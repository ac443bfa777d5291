"""What does a teacher's answer cost on disk, how well does it teach, and what does reading it cost a step?

    python -m benchmarks.distillation_cache [--sequences 8] [--length 128] [--steps 6] [--rounds 6]

Bytes and gradients are those of fits whose student is a table of logits, one row for each position: one fit asks the
teacher, the other reads the likeliest classes that were written an epoch before; ``cosine`` is that of their gradients.
The teacher's probabilities fall with the rank of a token as a power (exponent 1.42, of 32,768 tokens), and the
student's logits differ from its by noise of variance 1; at that exponent the 32 likeliest classes brought to a sum of
1, ``renormalised``, have a cosine of 0.961. ``truncated`` leaves the others out, and ``among themselves`` compares the
two networks over the likeliest classes alone; these are computed from logits in full precision.

The step is that of ResNet-20 on 32 images of 3 x 32 x 32 on one thread, in CPU time: without a callback, and with soft
targets that are read, in turns. ``control`` is the plain step once more: how far it lies from 1 is the noise. The time
of a hash is that of all keys of a batch: of 128 images, and of 32 sequences of 512 token ids.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks.common import parser_for, quiet, quiet_trainer, show_figures
from benchmarks.residual_nets import CifarResNet
from benchmarks.steps import beside_plain, seconds_of_steps
from lightning_optim import DistillationTeacher
from lightning_optim.distillation import AnswerCache, ModuleTeacher, SoftTarget
from lightning_optim.distillation.cache.sample import content_keys

CLASSES, EXPONENT, TEACHER_NOISE, STUDENT_NOISE = 32768, 1.42, 0.5, 1.0
STEP_BATCH, BATCH = 32, 128  # of a step, and of a hash


class LookUp(nn.Module):
    """A language model that is a table: logits for each number of a position."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(logits, freeze=False)

    @override
    def forward(self, positions: Tensor) -> Tensor:
        found: Tensor = self.table(positions)
        return found


class Student(LightningModule):
    """Learns nothing, so that all epochs have the same gradient."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.net = LookUp(logits)

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return 0.0 * self.net(batch[0]).mean()

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class Gradient(Callback):
    """Keeps the gradient of the last step."""

    value = torch.zeros(0)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gradient = next(pl_module.parameters()).grad
        assert gradient is not None
        self.value = gradient.clone()


def zipf_logits(positions: int) -> tuple[Tensor, Tensor]:
    """Return logits of a student and of its teacher, ``[positions, classes]``."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.empty(positions, CLASSES)
    for row in teacher:
        row.copy_(-EXPONENT * (torch.randperm(CLASSES, generator=generator) + 1.0).log())
    teacher += TEACHER_NOISE * torch.randn(teacher.shape, generator=generator)
    return teacher + STUDENT_NOISE * torch.randn(teacher.shape, generator=generator), teacher


def gradient_of(
    student: Tensor, teacher: Tensor, temperature: float, batches: DataLoader[Any], cache: AnswerCache | None
) -> Tensor:
    """Return the gradient in the student's logits: of the second epoch, in which a cache is read."""
    seen = Gradient()
    distil = DistillationTeacher(
        teacher=LookUp(teacher), losses=SoftTarget(temperature=temperature, class_dim=-1), cache=cache, weight=1.0
    )
    quiet_trainer([distil, seen], max_epochs=2 if cache else 1).fit(Student(student), batches)
    return seen.value


def cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine of two gradients."""
    return round(float(torch.cosine_similarity(first.flatten(), second.flatten(), 0)), 5)


def shortcuts(student: Tensor, teacher: Tensor, temperature: float, k: int) -> dict[str, Tensor]:
    """Return the gradients, but for a factor, of what is done elsewhere with the likeliest classes."""
    p, q = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    is_top = torch.zeros_like(q).scatter_(-1, q.topk(k).indices, 1.0)
    top = q * is_top
    share = top.sum(-1, keepdim=True)
    mine = p * is_top
    return {
        "renormalised": p - top / share,
        "truncated": p * share - top,
        "among themselves": mine / mine.sum(-1, keepdim=True) - top / share,
    }


def measure_teaching(sequences: int, length: int) -> list[dict[str, float]]:
    """Return bytes and cosines for some numbers of classes and temperatures."""
    student, teacher = zipf_logits(sequences * length)
    batches = DataLoader(TensorDataset(torch.arange(len(student)).view(sequences, length)), sequences)
    rows = []
    for temperature in (1.0, 2.0, 4.0):
        full = gradient_of(student, teacher, temperature, batches, None)
        for k in (32, 8):
            with tempfile.TemporaryDirectory() as folder:
                cache = AnswerCache(folder=folder, top_k=k)
                found = cosine(full, gradient_of(student, teacher, temperature, batches, cache))
                size = sum(path.stat().st_size for path in Path(folder).iterdir())
            others = shortcuts(student, teacher, temperature, k).items()
            row = {"temperature": temperature, "top_k": k, "bytes": round(size / len(student), 2), "cosine": found}
            rows.append(row | {name: cosine(full, gradient) for name, gradient in others})
    return rows


def measure_hash() -> dict[str, float]:
    """Return the milliseconds of the keys of a batch."""
    batches = {"images": torch.randn(BATCH, 3, 32, 32), "ids": torch.randint(0, CLASSES, (32, 512))}
    found = {}
    for name, batch in batches.items():
        times = []
        for _ in range(30):
            begin = time.process_time()
            content_keys(batch, len(batch))
            times.append(time.process_time() - begin)
        found[f"hash_{name}_ms"] = round(1e3 * statistics.median(times), 3)
    return found


def measure_step(steps: int, rounds: int) -> dict[str, float]:
    """Return the ratios of a step that reads answers, and of a plain step, to a plain step."""
    teacher = ModuleTeacher(module=CifarResNet(8, 8))
    with tempfile.TemporaryDirectory() as folder:
        variants: dict[str, Callable[[], Sequence[Callback]]] = {
            "cached": lambda: [DistillationTeacher(teacher=teacher, cache=AnswerCache(folder=folder))],
            "plain": list,
            "control": list,
        }
        for turns, names in ((1, ["cached"]), (rounds, list(variants))):  # the first asks the teacher
            torch.manual_seed(0)
            seconds = seconds_of_steps(
                {name: variants[name] for name in names},
                CifarResNet,
                (3, 32, 32),
                batch_size=STEP_BATCH,
                steps=steps,
                rounds=turns,
            )
    found = beside_plain(seconds)
    return {
        f"kd_step_{name}": round(found[key][0], 4)
        for name, key in (("ratio_cached", "cached"), ("cached_control", "control"))
    }


def show(rows: list[dict[str, float]]) -> None:
    """Print the table."""
    table = Table(title="Likeliest classes of 32,768, beside all of them")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:g}" if value >= 2 else f"{value:.4f}" for value in row.values()))
    Console(width=120).print(table)


def measure(sequences: int = 8, length: int = 128, steps: int = 6, rounds: int = 6) -> Mapping[str, Any]:
    """Figures of the cache, whose table is printed."""
    rows = measure_teaching(sequences, length)
    show(rows)
    figures = {"cache_bytes_per_token": rows[0]["bytes"], "cache_gradient_cosine": rows[0]["cosine"]}
    return figures | {"renormalised_cosine": rows[0]["renormalised"]} | measure_hash() | measure_step(steps, rounds)


def main() -> None:
    """Measure, print tables and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--sequences", type=int, default=8, help="sequences whose answers are kept")
    parser.add_argument("--length", type=int, default=128, help="positions of a sequence")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each kind of step")
    options = parser.parse_args()
    quiet()
    figures = measure(**vars(options))
    show_figures("Cache of a teacher's answers: 32 likeliest classes at temperature 1", figures)
    settings = vars(options) | {"torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps({"benchmark": "distillation_cache", "settings": settings, **figures}))


if __name__ == "__main__":
    main()
