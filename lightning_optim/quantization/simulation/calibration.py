"""Calibration: operators and ranges of a trained network, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_optim.errors import TargetError
from lightning_optim.quantization.functional import value_range
from lightning_optim.quantization.simulation.plan import Plan
from lightning_optim.quantization.simulation.simulator import Forward, Simulator
from lightning_optim.surgery.inputs import Inputs, call_network
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.patch import Patches

_MOST_RUNS = 10  # over all batches: each shows operators that lie behind those that the one before showed


@final
class Calibration:
    """Calibration: shows a simulator forward passes of a network, all of them in floating point.

    What the simulator knows already stays as it is: only ranges that are missing are learned.

    Args:
        simulator: Learns.
        network: The network, in evaluation.

    Attributes:
        inputs: What the network was called with, once all is known.
    """

    def __init__(self, simulator: Simulator, network: nn.Module) -> None:
        self._simulator, self._network = simulator, network
        self._known = frozenset(filter(simulator.ranges.has, simulator.ranges.keys))
        self.inputs: list[Inputs] = []
        self._num_batches, self._has_called = 0, False

    def learn(self, run: Callable[[int], None], num_batches: int) -> None:
        """Learn operators and ranges.

        Args:
            run: Runs the network on so many batches at most, and calls ``end_batch`` after each.
            num_batches: How many batches there may be.

        Raises:
            TargetError: If no operator runs in integers.
            ValueError: If there is no batch, or one holds NaN or infinities.
        """
        with self._watching():
            run(1)  # shows operators, as good as all of them
            for _ in range(_MOST_RUNS):
                plan = self._begin()
                run(num_batches)
                if self._simulator.plan is plan:
                    break  # no batch has shown an operator whose range in earlier ones would be missing
        self._check()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Watch the network's forward passes, whoever runs them."""
        patches = Patches()
        patches.wrap(self._network, "forward", self._run)
        try:
            yield
        finally:
            patches.undo()

    def _begin(self) -> Plan | None:
        ranges = self._simulator.ranges
        ranges.reset(frozenset(ranges.keys) - self._known)
        self.inputs, self._num_batches = [], 0
        return self._simulator.plan

    def _run(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        self._has_called = True
        self.inputs.append(Inputs(args, kwargs))
        return self._simulator.run_in_float(self._network, forward, args, kwargs, self._observe)

    def _observe(self, key: str, tensor: Tensor) -> None:
        ranges = self._simulator.ranges
        if key not in self._known:
            ranges.observe(key, tensor)
        elif key in ranges.watch.sums:
            ranges.look(key, tensor, *value_range(tensor))

    def end_batch(self) -> None:
        """Take in what one batch showed.

        Raises:
            ValueError: If it holds NaN or infinities.
        """
        broken = self._simulator.ranges.broken
        if broken:
            key, what = next(iter(broken.items()))
            raise ValueError(
                f"batch {self._num_batches} gives NaN or infinities at {key!r}, which holds {what}: calibrate on "
                "finite data, with finite weights"
            )
        self._num_batches += 1
        self._simulator.finish_batch()

    def _check(self) -> None:
        """Refuse a calibration that showed nothing."""
        if not self._has_called:
            raise ValueError("calibration never called the network: the data has no batch, or its step calls another")
        if not self._simulator.is_ready:
            operators = (self._simulator.plan or Plan()).operators.values()
            kept = [f"{each.path or 'the network'} ({each.name}): {each.note}" for each in operators if each.macs]
            found = f"; of its products, {'; '.join(kept[:3])}" if kept else ""
            raise TargetError(
                f"calibration found no operator that computes in integers{found}: choose targets with linear layers or "
                "convolutions, or leave such a network in floating point (export_onnx)"
            )


def run_calibration(simulator: Simulator, network: nn.Module, batches: Iterable[Any], *, num_batches: int = 32) -> None:
    """Run a network on some batches, so that a simulator learns its operators and ranges. The network stays as it is.

    Args:
        simulator: Learns; what it knows already stays as it is.
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
    batches, calibration = list(islice(batches, num_batches)), Calibration(simulator, network)

    def run(limit: int) -> None:
        for batch in batches[:limit]:
            call_network(network, batch)
            calibration.end_batch()

    with evaluating(network):
        calibration.learn(run, num_batches)


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
