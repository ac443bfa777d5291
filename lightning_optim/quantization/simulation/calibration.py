"""Calibration: operators and ranges of a trained network, without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, final

from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_optim.errors import TargetError
from lightning_optim.quantization.simulation.backend import FloatBackend
from lightning_optim.quantization.simulation.simulator import Forward, Simulator
from lightning_optim.surgery.inputs import Inputs, call_network
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.patch import Patches


@final
class Calibration:
    """Calibration: shows a simulator forward passes of a network, all of them in floating point.

    The first batch shows the operators, the others their ranges.

    Args:
        simulator: Learns; must know nothing yet.
        network: The network, in evaluation.

    Attributes:
        inputs: What the network was called with, but for the first batch's first time.
    """

    def __init__(self, simulator: Simulator, network: nn.Module) -> None:
        self._simulator, self._network = simulator, network
        self.inputs: list[Inputs] = []
        self._num_batches = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the network's forward passes, whoever runs them."""
        patches = Patches()
        patches.wrap(self._network, "forward", self._run)
        try:
            yield
        finally:
            patches.undo()

    def _run(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if self._simulator.plan is None:
            with self._simulator.observing():
                return self._simulator.run(self._network, forward, args, kwargs)
        self.inputs.append(Inputs(args, kwargs))
        with self._simulator.placed(self._network, FloatBackend(self._simulator.ranges.observe)) as placement:
            output = forward(*args, **kwargs)
        return placement.finish(output)

    def end_batch(self) -> None:
        """Take in what one batch showed.

        Raises:
            ValueError: If it holds NaN or infinities.
        """
        broken = self._simulator.ranges.broken_keys
        if broken:
            raise ValueError(
                f"batch {self._num_batches} gives NaN or infinities at {broken[0]!r}: calibrate on finite data, "
                "with finite weights"
            )
        self._num_batches += self._simulator.plan is not None
        self._simulator.finish_batch()

    def check(self) -> None:
        """Refuse a calibration that showed nothing.

        Raises:
            ValueError: Saying what was missing.
        """
        if self._simulator.plan is None:
            raise ValueError("calibration never called the network: the data has no batch, or its step calls another")
        if not self._simulator.is_ready:
            raise TargetError("calibration found no operator that computes in integers: see describe(), and targets")


def run_calibration(simulator: Simulator, network: nn.Module, batches: Iterable[Any], *, num_batches: int = 32) -> None:
    """Run a network on some batches, so that a simulator learns its operators and ranges. The network stays as it is.

    Args:
        simulator: Learns; must know nothing yet.
        network: The trained network.
        batches: A mapping holds keyword inputs of the network, a tuple or list its positional ones, all else is the
            only input.
        num_batches: How many to take at most, at least 1.

    Raises:
        ValueError: If there is no batch, or one holds NaN or infinities.

    Example:
        >>> import torch
        >>> from lightning_optim.quantization import MinMax
        >>> from lightning_optim.quantization import Affine
        >>> from lightning_optim.quantization import Symmetric
        >>> simulator = Simulator(Symmetric(), Affine(), MinMax())
        >>> run_calibration(simulator, nn.Linear(2, 1), [torch.tensor([[0.0, 3.0]])])
        >>> simulator.ranges.range_of(":linear<0")
        (0.0, 3.0)
    """
    check_num_batches(num_batches)
    calibration = Calibration(simulator, network)
    with evaluating(network), calibration.watching():
        for index, batch in enumerate(islice(batches, num_batches)):
            for _ in range(1 if index else 2):  # the first shows its operators, then its ranges
                call_network(network, batch)
                calibration.end_batch()
    calibration.check()


def check_num_batches(num_batches: int) -> None:
    """Refuse a number of batches that shows nothing.

    Raises:
        ValueError: Saying so.
    """
    if num_batches < 1:
        raise ValueError(f"num_batches must be at least 1, got {num_batches}")


def run_hooked(network: nn.Module, batches: Iterable[Any], handles: Iterable[RemovableHandle]) -> None:
    """Run a network in evaluation on some batches, and take the hooks off that watched it."""
    try:
        with evaluating(network):
            for batch in batches:
                call_network(network, batch)
    finally:
        for handle in handles:
            handle.remove()
