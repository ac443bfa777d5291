"""How exact, how cheap and how fast is pruning, beside Lightning's own ``ModelPruning``?

    python -m benchmarks.pruning [--only masks threshold speed shrink sparsity latency until]

- masks: CPU time of a training step under masks over the plain step, both in turns, and how many operators it adds.
- threshold: the exact global threshold over 100 million scores, in a process of its own: CPU seconds and extra memory.
- speed: ResNet-18 with half of its channels removed, eager and in ONNX Runtime, over the whole one; one thread.
- shrink: a training step of ResNet-20 after a shrink in the middle of a fit, over the dense step.
- sparsity: what was asked and what was reached at each step of a schedule.
- latency: predicted over measured time of networks that a budget chose, less one; ResNet-8 and -18, each engine;
  ``drifted``: where the scores have moved by a tenth since the latency was measured.
- until: how far the metric lies below the dense net's where it may fall by 0.2 points, and the sparsity; digits.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks.common import parser_for, quiet, quiet_trainer, show_figures
from benchmarks.pruning_landing import measure_until
from lightning_optim import PruningScheduler, Window
from lightning_optim.cost import Eager, Engine, Latency, Prices, Subject
from lightning_optim.demo import ResidualNet
from lightning_optim.graph import capture_network, couple, keep_channels
from lightning_optim.pruning import Budget, Channel, shrink_channels
from lightning_optim.schedule import Constant, Linear
from lightning_optim.surgery import apply_cut

Figures = dict[str, float]
CLASSES = 10


class Task(LightningModule):
    """A net under AdamW and cross entropy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(self.net(images), labels)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Stopwatch(Callback):
    """CPU seconds of each step from ``first`` on."""

    def __init__(self, first: int) -> None:
        self.first, self.seconds = first, list[float]()
        self._last = 0.0

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        now = time.process_time()
        if trainer.global_step > self.first:
            self.seconds.append(now - self._last)
        self._last = now


class OperatorCount(TorchDispatchMode):
    """Counts operators as they reach their kernels."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def fit(
    net: nn.Module, callbacks: list[Callback], steps: int, batch: int, side: int, *, channels: int = 3, epochs: int = 1
) -> Trainer:
    """Train on random images for some steps an epoch."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch * steps, channels, side, side), torch.randint(0, CLASSES, (batch * steps,))
    trainer = quiet_trainer(callbacks, max_epochs=epochs)
    trainer.fit(Task(net), DataLoader(TensorDataset(images, labels), batch))
    return trainer


def masked(sparsity: float = 0.8) -> Callback:
    """Single weights, masked before the first timed step."""
    return PruningScheduler(schedule=Constant(value=sparsity), window=Window(end=3, unit="step"))


def lightning_masks(sparsity: float = 0.8) -> Callback:
    """Lightning's own masks."""
    return ModelPruning(
        "l1_unstructured", amount=sparsity, use_lottery_ticket_hypothesis=False, parameter_names=["weight"]
    )


def measure_masks() -> Figures:
    """A small net, where fixed costs show: ResNet-20 at 16 x 16, batches of 4, after an epoch, with all masks on."""
    variants: dict[str, Callable[[], Callback] | None] = {
        "plain": None,
        "control": None,
        "masks": masked,
        "lightning": lightning_masks,
    }
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(12):
        seconds: dict[str, float] = {}
        for name in list(variants) if turn % 2 == 0 else list(reversed(variants)):
            make, watch = variants[name], Stopwatch(first=25)
            extra = [] if make is None else [make()]
            fit(ResidualNet(widths=(16, 32, 64), blocks=3, in_channels=3), [*extra, watch], 20, 4, 16, epochs=4)
            seconds[name] = statistics.median(watch.seconds)
        for name, median in seconds.items():
            ratios[name].append(median / seconds["plain"])
    plain = _operators([])
    return {
        "mask_step_ratio": statistics.median(ratios["masks"]),
        "mask_step_ratio_control": statistics.median(ratios["control"]),
        "mask_step_ratio_lightning": statistics.median(ratios["lightning"]),
        "mask_extra_operators": float(_operators([masked()]) - plain),
        "mask_extra_operators_lightning": float(_operators([lightning_masks()]) - plain),
    }


def _operators(callbacks: list[Callback]) -> int:
    """Operators of one late step."""

    class Counter(Callback):
        count = 0

        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.global_step == 18:  # long after pruning, in the second epoch
                self.mode = OperatorCount()
                self.mode.__enter__()

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.global_step == 19:
                self.mode.__exit__(None, None, None)
                self.count = self.mode.count

    counter = Counter()
    fit(ResidualNet(widths=(16, 32, 64), blocks=3, in_channels=3), [*callbacks, counter], 10, 4, 16, epochs=2)
    return counter.count


_THRESHOLD = """
import resource, sys, time, torch
from lightning_optim.functional import drop_lowest
torch.set_num_threads(1)
torch.manual_seed(0)
scores = [torch.randn(10_000_000).abs_() for _ in range(10)]
drop_lowest([scores[0][:1_000_000]], 800_000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
seconds = []
for _ in range(3):
    began = time.process_time()
    masks = drop_lowest(scores, 80_000_000)
    seconds.append(time.process_time() - began)
    dropped = sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)  # no copy that would be counted
    del masks
print(min(seconds), peak() - before, dropped)
"""


def measure_threshold() -> Figures:
    """The masks of 100 million scores (0.1 GB) are what is asked for; memory is counted beside them."""
    done = subprocess.run([sys.executable, "-c", _THRESHOLD], capture_output=True, text=True, check=True)
    seconds, gigabytes, dropped = map(float, done.stdout.split())
    if dropped != 80_000_000:
        raise RuntimeError(f"asked for 80,000,000, got {dropped:,.0f}")
    return {"global_threshold_seconds": seconds, "global_threshold_extra_gb": max(gigabytes - 100e6 / 2**30, 0.0)}


class ResNet18(nn.Module):
    """The stem and the four stages of He et al., 2016 (arXiv:1512.03385, table 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        body = ResidualNet(widths=(64, 128, 256, 512), blocks=2, in_channels=3, num_classes=1000)
        self.layers, self.head = body.layers, body.head

    @override
    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, 1000]``."""
        features = functional.max_pool2d(self.stem(images), 3, 2, 1)
        logits: Tensor = self.head(self.layers(features).mean((2, 3)))
        return logits


def half(net: nn.Module, images: Tensor, share: float = 0.5, multiple: int = 16) -> nn.Module:
    """Remove a share of the channels of every group, physically."""
    small = copy.deepcopy(net)
    coupling = couple(capture_network(small, (images,)))
    keep = []
    for group in coupling.groups:
        kept = max(round((1.0 - share) * group.size / multiple), 1) * multiple
        keep.append((group, torch.arange(min(kept, group.size))))
    shrink_channels(small, coupling, keep, (images,))
    return small.eval()


def measure_speed() -> Figures:
    """Batches of one image of 128 x 128."""
    from lightning_optim.export import export_onnx, time_models

    torch.manual_seed(0)
    images = torch.randn(2, 3, 128, 128)
    nets = {"whole": ResNet18().eval()}
    nets["half"] = half(nets["whole"], images)
    nets["unrounded"], nets["rounded"] = (half(nets["whole"], images, 0.45, multiple) for multiple in (1, 16))
    eager = _time_eager(nets, images[:1])
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: export_onnx(net, (images,), Path(folder) / f"{name}.onnx") for name, net in nets.items()}
        runtime = {name: of[1].cpu_ms for name, of in time_models(paths, images.numpy(), (1,), seconds=15).items()}
    return {
        "resnet18_eager_speedup": eager["whole"] / eager["half"],
        "resnet18_ort_speedup": runtime["whole"] / runtime["half"],
        "rounding_eager_ratio": eager["rounded"] / eager["unrounded"],
        "rounding_ort_ratio": runtime["rounded"] / runtime["unrounded"],
    }


def _time_eager(nets: dict[str, nn.Module], images: Tensor) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in nets}
    with torch.inference_mode():
        for turn in range(60):
            for name in list(nets) if turn % 2 == 0 else list(reversed(nets)):
                began = time.process_time()
                nets[name](images)
                if turn >= 5:
                    samples[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in samples.items()}


def measure_shrink() -> Figures:
    """ResNet-20, half of the channels gone at step 10 of 40."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(3):
        for shrinks in seconds:
            watch = Stopwatch(first=15)
            net = ResidualNet(widths=(16, 32, 64), blocks=3, in_channels=3)
            structure = Channel(shrink="update")
            pruning = PruningScheduler(
                schedule=Constant(value=0.5), structure=structure, window=Window(begin=10, end=11, unit="step")
            )
            fit(net, [*([pruning] if shrinks else []), watch], 40, 32, 32)
            seconds[shrinks] += watch.seconds
    return {"shrunk_step_ratio": statistics.median(seconds[True]) / statistics.median(seconds[False])}


class Census(Callback):
    """Sparsity of the convolutions at each epoch's end."""

    def __init__(self) -> None:
        self.reached: list[float] = []

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        weights = [module.weight for module in pl_module.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        self.reached.append(zeros / sum(weight.numel() for weight in weights))


def measure_sparsity() -> Figures:
    """Five steps of a linear schedule to 80 %: the largest difference between asked and reached."""
    census, schedule = Census(), Linear(start=0.0, end=0.8)
    window = Window(end=5, unit="step", every=1)
    fit(
        ResidualNet(widths=(8, 16), in_channels=3),
        [PruningScheduler(schedule=schedule, window=window), census],
        6,
        4,
        8,
    )
    asked = [schedule(step / 5) for step in range(6)]
    return {"sparsity_error": max(abs(a - b) for a, b in zip(asked, census.reached, strict=True))}


def measure_latency() -> Figures:
    """Batches of one image; the worst and the median error of each net in each engine, and the worst of an engine."""
    from lightning_optim.export import ONNXRuntimeEngine

    torch.manual_seed(0)
    nets = {
        "resnet8": (ResidualNet(widths=(32, 64, 128)).eval(), torch.randn(2, 1, 28, 28)),
        "resnet18": (ResNet18().eval(), torch.randn(2, 3, 128, 128)),
    }
    engines: dict[str, Engine] = {"eager": Eager(), "ort": ONNXRuntimeEngine()}
    figures: Figures = {}
    for kind, engine in engines.items():
        for name, (net, images) in nets.items():
            for when, errors in zip(("", "_drifted"), latency_errors(net, images, engine), strict=True):
                figures[f"latency_{kind}_{name}{when}_worst_error"] = max(errors)
                figures[f"latency_{kind}_{name}{when}_median_error"] = statistics.median(errors)
        worst = [figures[f"latency_{kind}_{name}_worst_error"] for name in nets]
        figures[f"latency_{kind}_worst_error"] = max(worst)
    return figures


def latency_errors(
    net: nn.Module, images: Tensor, engine: Engine, drift: float = 0.1, turns: int = 3
) -> tuple[list[float], list[float]]:
    """``|predicted / measured - 1|`` of up to six networks that a budget chose; budgets below the floor are left out.

    Args:
        net: The network.
        images: A batch.
        engine: What runs the network.
        drift: How far, relatively, scores move at random between the measurement and the choice, as in a fit.
        turns: How often each network is timed, all in turns.

    Returns:
        Errors of what the budget chose when it was measured, and of what it chose after the drift.
    """
    coupling = couple(capture_network(net, (images,)))
    pools = {group.name: group for group in coupling.groups}
    chosen: tuple[list[tuple[float, nn.Module]], ...] = ([], [])
    for seed, sparsity in itertools.product((0, 1), (0.3, 0.5, 0.6)):
        torch.manual_seed(seed)
        scores = {
            pool: (torch.rand(group.size) + 0.2) * (torch.rand(1) + 0.5)  # unlike within a pool, and from pool to pool
            for pool, group in pools.items()
        }
        later = {pool: score * (1.0 + drift * torch.randn(len(score))).clamp_min(0.1) for pool, score in scores.items()}
        try:
            prices = Latency(engine=engine).prices(
                Subject(net, coupling, pools, (images,), choose=partial(channels_of, scores, sparsity))
            )
            kept = [masks_of(values, sparsity, prices) for values in (scores, later)]
        except ValueError:  # a call's own cost alone is more than the budget
            continue
        for networks, masks in zip(chosen, kept, strict=True):
            small = copy.deepcopy(net)
            apply_cut(small, keep_channels((pools[pool], mask.nonzero().flatten()) for pool, mask in masks.items()))
            networks.append((prices({pool: int(mask.sum()) for pool, mask in masks.items()}), small))
    every = [*chosen[0], *chosen[1]]
    times = [[engine(small, (images[:1],), {}) for _, small in every] for _ in range(turns)]
    errors = [
        abs(predicted / statistics.median(of_one) - 1.0)
        for (predicted, _), of_one in zip(every, zip(*times, strict=True), strict=True)
    ]
    return errors[: len(chosen[0])], errors[len(chosen[0]) :]


def masks_of(scores: Mapping[str, Tensor], sparsity: float, prices: Prices) -> dict[str, Tensor]:
    """What a latency budget keeps, in multiples of 16."""
    return Budget().start(prices, multiple=16, highest=sparsity)(scores, sparsity)


def channels_of(scores: Mapping[str, Tensor], sparsity: float, prices: Prices) -> dict[str, int]:
    """How many channels that are."""
    return {pool: int(mask.sum()) for pool, mask in masks_of(scores, sparsity, prices).items()}


PARTS: dict[str, Callable[[], Figures]] = {
    "masks": measure_masks,
    "threshold": measure_threshold,
    "speed": measure_speed,
    "shrink": measure_shrink,
    "sparsity": measure_sparsity,
    "latency": measure_latency,
    "until": measure_until,
}


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure")
    options = parser.parse_args()
    quiet()
    figures: Figures = {}
    for name in options.only:
        figures |= PARTS[name]()
    show_figures("Pruning", figures)
    print(json.dumps({"benchmark": "pruning", "torch": torch.__version__} | figures))


if __name__ == "__main__":
    main()
