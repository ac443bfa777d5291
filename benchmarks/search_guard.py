"""Guard of a supernet: on two ranks, what it costs in a step, and whether it catches every rank that goes astray.

    python -m benchmarks.search_guard --out FILE

Called by ``benchmarks.search``, in a process of its own, which starts the second rank. Each injected fault lets rank 1
run another path from some step on, or moves one of its architecture parameters by a millionth; it is caught if the fit
ends, on both ranks, before the weights take that step.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import parser_for, quiet
from benchmarks.search_gradient import Classifier
from benchmarks.search_supernet import WideNet
from lightning_optim import NASSupernet, Targets
from lightning_optim.errors import RankMismatchError
from lightning_optim.nas import GDAS, OperationChoice, Sampler

FAULTS, STEPS = 20, 8


class Astray(Callback):
    """Lets rank 1 go astray at one step.

    Args:
        at: The step.
        is_drift: Whether its architecture parameters drift, or else its path is another one.
    """

    def __init__(self, at: int, *, is_drift: bool) -> None:
        self._at, self._is_drift = at, is_drift

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go astray just before the step."""
        if trainer.global_rank == 0 or trainer.global_step != self._at:
            return
        callback: Any = next(each for each in trainer.callbacks if isinstance(each, NASSupernet))  # type: ignore[attr-defined]
        training = callback._training
        if self._is_drift:
            with torch.no_grad():
                next(iter(training._state.parameters.values.values()))[0] += 1e-6
        else:
            draw, space = training._state.paths, callback.supernet.space
            training._state.paths = lambda step, progress: tuple(
                type(path)(architecture=space.neighbours(path.architecture)[0]) for path in draw(step, progress)
            )


class Clock(Callback):
    """Notes the seconds of each step of a fit."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """End."""
        self.seconds.append(time.perf_counter() - self._began)


def _fit(
    sampler: Sampler | None, *callbacks: Callback, network: nn.Module, guard: bool = True, steps: int = STEPS
) -> int:
    x = torch.randn(64, 3, 24, 24)
    others = (
        {"other": WideNet(8).layers[1], "skip": nn.Identity} if network.head.in_features == 8 else {"skip": nn.Identity}
    )
    choice = OperationChoice(targets=Targets(include=["net.layers.[1-5]"]), candidates=others)
    torch.manual_seed(0)
    module = Classifier(network, 10 * steps)
    callback = NASSupernet(
        space={"layers": choice}, example=x[:2], network="net", sampler=sampler, guard=guard, search_at="call"
    )
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False, max_steps=steps,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback, *callbacks],
    )  # fmt: skip
    data = DataLoader(TensorDataset(x, torch.zeros(64, dtype=torch.long)), batch_size=16)
    try:
        trainer.fit(module, data)
    except RankMismatchError:
        return trainer.global_step
    return -1


def _caught() -> float:
    """Share of the faults that ended the fit before their step."""
    found = []
    for number in range(FAULTS):
        at, is_drift = random.Random(number).randrange(1, 3), number % 2 == 1
        ended = _fit(GDAS() if is_drift else None, Astray(at, is_drift=is_drift), network=WideNet(8), steps=4)
        found.append(ended == at)
    return statistics.mean(found)


def _step_seconds() -> float:
    """Seconds of a step of six convolutions of 32 channels, without a guard."""
    clock = Clock()
    _fit(None, clock, network=WideNet(), guard=False, steps=12)
    return statistics.median(clock.seconds[2:])


class Beginnings(Callback):
    """Measures what the supernet does at the beginning of a batch, on ranks that come to it together."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a batch many times."""
        supernet = next(each for each in trainer.callbacks if isinstance(each, NASSupernet))  # type: ignore[attr-defined]
        found = []
        for _ in range(200):
            distributed.barrier()
            began = time.perf_counter()
            supernet.on_train_batch_start(trainer, pl_module, None, 0)
            found.append(time.perf_counter() - began)
        self.seconds = statistics.median(found)


def _comparison_seconds() -> float:
    """Seconds that a comparison between two ranks takes."""
    found = {}
    for is_guarded in (True, False):
        watch = Beginnings()
        _fit(None, watch, network=WideNet(8), guard=is_guarded, steps=1)
        found[is_guarded] = watch.seconds
    return found[True] - found[False]


def guard() -> dict[str, Any]:
    """Run both parts on two ranks, and return their figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guard.json"
        subprocess.run([sys.executable, "-m", "benchmarks.search_guard", "--out", str(path)], check=True, timeout=1800)
        figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def main() -> None:
    """Run on two ranks; rank 0 writes the figures."""
    parser: argparse.ArgumentParser = parser_for(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    quiet()
    figures = {"faults_caught": _caught(), "faults": FAULTS}
    figures["seconds_of_a_comparison"], figures["seconds_of_a_step"] = _comparison_seconds(), _step_seconds()
    figures["guard_overhead"] = figures["seconds_of_a_comparison"] / figures["seconds_of_a_step"]
    if distributed.get_rank() == 0:
        options.out.write_text(json.dumps(figures))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
