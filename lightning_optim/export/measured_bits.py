"""Latency of every layer at every width, measured on deployed networks."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from lightning_optim.cost.timing import time_call
from lightning_optim.export.quantized import Acceptance, call_of_one, export_quantized
from lightning_optim.export.runtime.base import Runtime
from lightning_optim.export.runtime.onnxruntime import ONNXRuntime
from lightning_optim.quantization.mixed_precision.sensitivity import BitLatency, BitTrials
from lightning_optim.quantization.simulation.simulator import Simulator

_ANY = Acceptance(min_agreement=0.0, max_error=math.inf)  # a file that is timed alone need not compute well


def bit_latency(
    network: nn.Module,
    trials: BitTrials,
    *,
    runtime: Runtime | None = None,
    rounds: int = 5,
    clock: Callable[[Callable[[], object]], float] = time_call,
) -> BitLatency:
    """Latency of a network when one layer alone has few bits, by layer and width.

    The network is exported once for each pair of a layer and a width, and all files are timed in turns. The network
    stays as it is.

    A runtime may gain nothing from few bits: ONNX Runtime's convolutions compute in 8 bits whatever is stored.

    Args:
        network: The trained network.
        trials: Layers and widths to try, from ``bit_trials`` of this network; the first sample of its batches is timed.
        runtime: The runtime; ``None`` is ONNX Runtime.
        rounds: How often each file is timed, at least 1; the median counts.
        clock: Times a call, in seconds.

    Raises:
        ExportError: If the runtime can't run one of the widths.
        ValueError: If ``rounds`` is out of range.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    runtime = runtime or ONNXRuntime()
    with tempfile.TemporaryDirectory() as folder:

        def deployed(simulator: Simulator, name: str) -> Callable[[], object]:
            assert simulator.example is not None
            path = Path(folder, f"{name}.onnx")
            export_quantized(simulator, network, path, runtime=runtime, acceptance=_ANY)
            return call_of_one(runtime.load(path), simulator.example)

        calls = [deployed(trials.base(), "base")]
        calls += [deployed(trials.of(layer.name, bits), layer.name) for layer in trials.layers for bits in trials.bits]
        turns = [[clock(call) for call in calls] for _ in range(rounds)]
    base, *others = (statistics.median(samples) for samples in zip(*turns, strict=True))
    width = len(trials.bits)
    rows = (tuple(others[place * width : (place + 1) * width]) for place in range(len(trials.layers)))
    return BitLatency(
        bits=trials.bits, base=base, layers=dict(zip((each.name for each in trials.layers), rows, strict=True))
    )
