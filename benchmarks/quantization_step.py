"""What does a training step with simulated int8 cost, beside the plain step, and how soon does it begin?

    python -m benchmarks.quantization_step [--steps 12] [--rounds 8]

The residual net and the vision transformer of ``quantization_speed`` train on batches of 32 random images, in turns
within one process on one thread. A step is timed in CPU time, from the end of one batch to the end of the next; ratios
are of medians.

- points: activations are quantized where a convolution or a linear reads them, and weights, as other libraries do it:
  biases are not rounded, and a weight's scale comes from its largest magnitude alone. Ranges are observed at every
  step. ``portable``: the same with this library's own scales of weights, which keep sums of pairs within 16 bits.
- all: everything that the deployed network rounds, with batch norms on their batch's statistics, and ``folded``.
- peers: what other libraries make of the same nets, as they come: ModelOpt and Brevitas, if they are installed
  (``benchmarks/requirements.txt``), and torch's own FX workflow. The reason why one does not run stands in its place.
- compiled: both of these with a compiled network, beside the plain compiled one; ``compiled_graphs`` counts the graphs
  that a fit compiles while it simulates, and ``compiled_breaks`` what it had to simulate in Python.

``attach_seconds`` is the time from the beginning of a fit to the end of its first simulated step, over that of the
plain fit; ``ranks_worst_error`` the largest relative difference between the scales that two processes with different
data agree on and those of one process with all of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

import lightning_optim.quantization.compilation.compiled
from benchmarks.common import parser_for, quiet, quiet_trainer, show_figures
from benchmarks.quantization_speed import ResNet, ViT
from benchmarks.steps import WARMUP, Stopwatch
from lightning_optim import QATFakeQuant, Targets
from lightning_optim.demo import Classifier
from lightning_optim.errors import cause_of
from lightning_optim.quantization import Affine, MovingAverage, Symmetric
from lightning_optim.quantization.compilation.trace import trace
from lightning_optim.quantization.simulation import rounding_backend
from lightning_optim.quantization.simulation.deferred_activations import DeferredActivations
from lightning_optim.quantization.simulation.placement import Placement
from lightning_optim.quantization.simulation.ranges import Ranges
from lightning_optim.quantization.simulation.ranges_of_ranks import merge_ranges

BATCH, SIDE = 32, 32


NETS: dict[str, Callable[[], nn.Module]] = {"cnn": ResNet, "vit": ViT}


@contextlib.contextmanager
def at_points_of_peers() -> Iterator[None]:
    """Leave what a layer puts out as it is until a convolution or a linear reads it, and biases altogether."""
    with (
        mock.patch.object(DeferredActivations, "quantize_pending", lambda self, value, reader: value),
        mock.patch.object(Placement, "_move", lambda self, call: call.run()),
        mock.patch.object(rounding_backend, "round_bias", lambda bias, scale: bias),
        mock.patch.object(rounding_backend, "bias_floor", return_value=None),
    ):
        yield


def quantize(*, points: bool = False, portable: bool = True, folded: bool = False) -> QATFakeQuant:
    """The callback, with ranges observed to the end."""
    return QATFakeQuant(
        targets=Targets(types=("Conv2d", "Linear")) if points else None,
        weight_quantizer=Symmetric(portable=portable),
        freeze={"observer": 1.0, "batch_norm": 0.0 if folded else 1.0},
    )


VARIANTS: dict[str, Callable[[], list[QATFakeQuant]]] = {
    "plain": list,
    "control": list,
    "points": lambda: [quantize(points=True, portable=False)],
    "portable": lambda: [quantize(points=True)],
    "all": lambda: [quantize()],
    "folded": lambda: [quantize(folded=True)],
}


def _model_opt(network: nn.Module, images: Tensor) -> Any:
    """Inputs and weights of convolutions and linears; the ranges of inputs are found once, here."""
    from modelopt.torch import quantization  # type: ignore[import-not-found]  # an optional peer

    return quantization.quantize(network, quantization.INT8_DEFAULT_CFG, forward_loop=lambda model: model(images))


def _brevitas(network: nn.Module, images: Tensor) -> Any:
    """Inputs and weights of convolutions and linears; percentiles in the first 300 steps, learned ranges then."""
    from brevitas.graph.quantize import layerwise_quantize  # type: ignore[import-not-found]  # an optional peer

    return layerwise_quantize(network)


def _torch_fx(network: nn.Module, images: Tensor) -> Any:
    """Fused observers of moving averages, batch norms folded."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx  # type: ignore[attr-defined]  # torch's own

    return prepare_qat_fx(network.train(), get_default_qat_qconfig_mapping("x86"), (images,))


PEERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "modelopt": _model_opt,
    "brevitas": _brevitas,
    "torch_fx": _torch_fx,
}


def take_turn(net: str, variant: str, steps: int, *, compiled: bool = False) -> list[float]:
    """Train a fresh net for a few steps and return the CPU seconds of each."""
    torch.manual_seed(0)
    images = torch.randn(BATCH * (WARMUP + steps), 3, SIDE, SIDE)
    labels = torch.randint(0, 10, (len(images),))
    stopwatch = Stopwatch()
    trainer = quiet_trainer([stopwatch, *VARIANTS.get(variant, list)()], max_epochs=1)
    network: Any = torch.compile(NETS[net]()) if compiled else NETS[net]()
    if variant in PEERS:
        network = PEERS[variant](network, images[:BATCH])
    with at_points_of_peers() if variant in ("points", "portable") else contextlib.nullcontext():
        trainer.fit(Classifier(network), DataLoader(TensorDataset(images, labels), BATCH))
    return stopwatch.seconds


def measure_steps(steps: int, rounds: int) -> dict[str, float]:
    """Ratios to the plain step."""
    found = {}
    for net in NETS:
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for turn in range(rounds):
            for variant in list(VARIANTS) if turn % 2 == 0 else list(reversed(VARIANTS)):
                seconds[variant] += take_turn(net, variant, steps)
        medians = {variant: statistics.median(times) for variant, times in seconds.items()}
        names = {variant: "" if variant == "points" else f"_{variant}" for variant in VARIANTS if variant != "plain"}
        found |= {f"qat_step_ratio_{net}{end}": medians[name] / medians["plain"] for name, end in names.items()}
    return found


def measure_peers(steps: int, rounds: int) -> dict[str, float | str]:
    """Ratios of other libraries to the plain step, or why there is none."""
    found: dict[str, float | str] = {}
    for net, peer in itertools.product(NETS, PEERS):
        seconds: dict[str, list[float]] = {"plain": [], peer: []}
        try:
            for _ in range(rounds):
                for variant, times in seconds.items():
                    times.extend(take_turn(net, variant, steps))
        except Exception as error:  # a peer fails in ways of its own
            found[f"peer_step_ratio_{peer}_{net}"] = cause_of(error)
            continue
        found[f"peer_step_ratio_{peer}_{net}"] = statistics.median(seconds[peer]) / statistics.median(seconds["plain"])
    return found


def measure_compiled(steps: int, rounds: int) -> dict[str, float]:
    """Ratios of compiled to compiled steps, and what was compiled; each turn compiles, mostly from a cache."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise RuntimeError("torch.compile needs a C++ compiler")
    names = {"points": "", "all": "_all"}
    found: dict[str, float] = {}
    for net in NETS:
        seconds: dict[str, list[float]] = {variant: [] for variant in ("plain", *names)}
        for _ in range(rounds):
            for variant, times in seconds.items():
                torch._dynamo.reset()
                with warnings.catch_warnings(record=True) as caught, CountedGraphs() as graphs:
                    warnings.simplefilter("always")  # none is caught that the process ignores
                    times.extend(take_turn(net, variant, steps, compiled=True))
                if variant == "points":
                    found[f"qat_compiled_graphs_{net}"] = graphs.count
                    breaks = [warning for warning in caught if "simulated uncompiled" in str(warning.message)]
                    found[f"qat_compiled_breaks_{net}"] = len(breaks)
        medians = {variant: statistics.median(times) for variant, times in seconds.items()}
        found |= {f"qat_compiled_ratio_{net}{end}": medians[name] / medians["plain"] for name, end in names.items()}
    return {"qat_compiled_ratio": max(found[f"qat_compiled_ratio_{net}"] for net in NETS), **found}


class CountedGraphs:
    """Counts the graphs of simulated networks that are handed to a compiler while it is entered."""

    def __init__(self) -> None:
        self.count = 0
        self._patch = mock.patch.object(lightning_optim.quantization.compilation.compiled, "trace", self._trace)

    def _trace(self, *args: Any, fold: bool) -> Any:
        self.count += 1
        return trace(*args, fold=fold)

    def __enter__(self) -> CountedGraphs:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


class FirstSteps(Stopwatch):
    """Seconds from the beginning of the fit to the end of the third step, the first that is simulated."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self.took = 0.0

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.began = time.process_time()

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            self.took = time.process_time() - self.began


def measure_attach() -> dict[str, float]:
    """Seconds that the callback adds until it simulates."""
    batches = DataLoader(TensorDataset(torch.randn(3 * BATCH, 3, SIDE, SIDE), torch.zeros(3 * BATCH).long()), BATCH)
    took = {}
    for variant in ("plain", "all"):
        watch = FirstSteps()
        quiet_trainer([watch, *VARIANTS[variant]()], max_epochs=1).fit(Classifier(NETS["cnn"]()), batches)
        took[variant] = watch.took
    return {"attach_seconds": took["all"] - took["plain"]}


def _batches(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [(1.0 + 9.0 * rank) * torch.randn(64, generator=generator) for _ in range(5)]


def _observe(rank: int, folder: str) -> None:
    """One of two processes, whose values are ten times as large as the other's."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ranges = Ranges(Affine(), MovingAverage())
    for batch in _batches(rank):
        ranges.observe("layer", batch)
        merge_ranges(ranges, torch.device("cpu"))
    torch.save(ranges.qparams("layer", torch.device("cpu")), Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def measure_ranks() -> dict[str, float]:
    """Two processes beside one on all of their data."""
    alone = Ranges(Affine(), MovingAverage())
    for both in zip(_batches(0), _batches(1), strict=True):
        alone.observe("layer", torch.cat(both))
        merge_ranges(alone, torch.device("cpu"))
    expected = alone.qparams("layer", torch.device("cpu"))
    assert expected is not None
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_observe, (folder,), nprocs=2)  # type: ignore[no-untyped-call]  # torch's own
        seen = [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in (0, 1)]
    worst = max(float(abs(scale / expected[0] - 1.0)) for scale, _ in seen)
    return {"ranks_worst_error": worst}


def measure(steps: int = 12, rounds: int = 8) -> dict[str, float | str]:
    """All figures."""
    fewer = max(rounds // 2, 1)
    ours = {**measure_steps(steps, rounds), **measure_compiled(steps, fewer), **measure_attach(), **measure_ranks()}
    return {**ours, **measure_peers(steps, fewer)}


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each variant")
    options = parser.parse_args()
    quiet()
    figures = measure(options.steps, options.rounds)
    show_figures("Training with simulated int8", figures)
    print(json.dumps({"benchmark": "quantization_step", "torch": torch.__version__, **figures}))


if __name__ == "__main__":
    main()
