"""Run of post-training methods, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.simulator import Simulator


def apply_methods(
    network: nn.Module,
    simulator: Simulator,
    batches: Sequence[Any],
    methods: Sequence[PostTraining],
    start: Callable[[], Simulator],
) -> Simulator:
    """Change a network in place by each method in turn, and calibrate anew after each; if one fails, nothing changes.

    Args:
        network: The trained network.
        simulator: Calibrated on the network as it is.
        batches: Inputs, as ``run_calibration`` takes them.
        methods: What to apply.
        start: Returns a simulator that knows nothing yet.

    Returns:
        A simulator that is calibrated on the changed network.
    """
    before = {name: value.clone() for name, value in network.state_dict().items()} if methods else {}
    try:
        for method in methods:
            method.apply(network, simulator, batches)
            simulator = start()
            run_calibration(simulator, network, batches, num_batches=len(batches))
    except BaseException:
        network.load_state_dict(before)
        raise
    return simulator
