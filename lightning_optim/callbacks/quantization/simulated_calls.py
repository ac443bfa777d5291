"""Calls of a network that run simulated, as a whole or in parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_optim.callbacks.trainer.lightning_private import compiler_of
from lightning_optim.callbacks.trainer.network_observer import NetworkObserver
from lightning_optim.errors import TargetError
from lightning_optim.quantization.compilation.compiled import CompiledSimulation
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.watch import Watch
from lightning_optim.surgery.compilation import find_compilation
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.torch_private import uncompiled


@final
class SimulatedCalls:
    """Simulation of what calls a network, or the parts of it that a training step calls.

    Attributes:
        watch: What this batch's calls take note of.
        folds: Whether they fold batch norms in training too.
        parts: Names of the parts that a training step calls; empty if it calls the network as a whole, ``None`` while
            that is not known.
    """

    def __init__(self) -> None:
        self.watch, self.folds = Watch.NOTHING, False
        self.parts: tuple[str, ...] | None = None
        self._observer, self._patches = NetworkObserver(), Patches()

    def attach(self, pl_module: LightningModule, network: nn.Module, simulator: Simulator) -> None:
        """Simulate what calls the network from now on, and watch the first training step for what that is.

        Args:
            pl_module: The LightningModule.
            network: Its network, below any wrapper of ``torch.compile``.
            simulator: What is known of the network.
        """
        self.release()
        if self.parts is None:
            self._observer.watch(pl_module, network)
        if not self.parts:
            self._attach_whole(pl_module, network, simulator)
        if self.parts:
            self._patches.wrap(pl_module, "training_step", partial(_follow_parts, simulator))
        for part in self.parts or ():
            wrapper = partial(self._simulate_part, simulator, network, part)
            self._patches.wrap(uncompiled(submodule(network, part)), "forward", wrapper)

    def finds_parts(self) -> bool:
        """Whether the step that ended was the first one, and called parts, which are to be attached."""
        if self.parts is not None or not self._observer.is_known:
            return False
        self.parts = self._observer.parts
        return bool(self.parts)

    def check_reached(self, network: nn.Module, simulator: Simulator) -> None:
        """Refuse a step in which nothing could be recorded that computes in integers.

        Raises:
            TargetError: If there was none; a step that called nothing at all is passed over until one does.
        """
        plan = simulator.plan
        if plan is None and self.parts is None and self._observer.ran is None:
            return
        if plan is None or not any(operator.is_integer for operator in plan.operators.values()):
            what = "never called it" if plan is None else "ran no operator of it that can compute in integers"
            raise TargetError(
                f"nothing can be quantized in {type(network).__name__}: the training step {what}; set network and "
                "targets to what training_step calls"
            )

    def release(self) -> None:
        """Take every patch off."""
        self._patches.undo()
        self._observer.release()
        self.watch = Watch.NOTHING

    def _attach_whole(self, pl_module: LightningModule, network: nn.Module, simulator: Simulator) -> None:
        compilation = find_compilation(pl_module, network, compiler_of(pl_module))
        compiler = None if compilation is None else compilation.compiler
        simulation = CompiledSimulation(simulator, network, compiler)

        @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled model calls it between two graphs
        def simulate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with simulator.observing(self.watch):
                return simulation.run(original, args, kwargs, fold=self.folds)

        self._patches.wrap(network, "forward", simulate)
        if compilation is not None and compilation.wrapper is not None:  # the simulation compiles for itself
            self._patches.wrap(*compilation.wrapper, lambda _, *args, **kwargs: compilation.call(*args, **kwargs))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled part is called between two graphs
    def _simulate_part(
        self,
        simulator: Simulator,
        network: nn.Module,
        part: str,
        original: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with simulator.observing(self.watch):
            return simulator.run(network, original, args, kwargs, fold=self.folds, part=part)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the live model out of copies and pickles."""
        fresh = SimulatedCalls()
        fresh.parts = self.parts
        return vars(fresh)


def _follow_parts(simulator: Simulator, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with simulator.parts_followed():
        return original(*args, **kwargs)
