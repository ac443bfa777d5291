"""Simulation of a network that ``torch.compile`` compiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, final

import torch
from torch import Tensor, distributed, fx, nn

from lightning_optim.quantization.compilation.trace import NotKnownYetError, trace
from lightning_optim.quantization.simulation.simulator import Forward, Simulator
from lightning_optim.surgery.compilation import Compiler
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.passes import is_repeating
from lightning_optim.surgery.torch_private import (
    ISOLATES_GRAPHS,
    backend_error,
    can_compile,
    compilation_errors,
    graphs_uncut_by_ddp,
    has_too_many_graphs,
)

_MOST_GRAPHS = 64  # of one state of the simulation: every shape of a batch has its own


@final
class CompiledSimulation:
    """Runs a simulated network as one compiled graph, once its ranges are known.

    ``torch.compile`` captures the plain forward pass and guards it; the graph is rewritten before it is compiled, so
    that it quantizes what the simulation in Python would. Scales and what quantizers learn are inputs of the graph, and
    the ranges that it observes are outputs: nothing is compiled again when they change. What can't be captured as one
    graph is simulated in Python, with a warning.

    Args:
        simulator: What is known about the network.
        network: The network.
        compiler: Compiles the graph: a backend of ``torch.compile``; ``None`` simulates in Python.
    """

    def __init__(self, simulator: Simulator, network: nn.Module, compiler: Compiler | None) -> None:
        self._simulator, self._network, self._compiler = simulator, network, compiler
        self._states: dict[tuple[bool, ...], _CompiledState | None] = {}  # None is simulated in Python
        self._masked = frozenset[str]()  # sums that the graphs leave in floating point
        self._num_outputs: dict[bool, int] = {}  # in training or not
        odd = next((type(rule).__name__ for rule in simulator.quantizers if rule.scheme.has_level_per_sign), None)
        if compiler is not None and odd is not None:
            self._compiler = None
            self._warn(f"{odd} cannot be part of a graph")
        elif compiler is not None and not ISOLATES_GRAPHS:
            self._compiler = None
            self._warn(
                f"graphs of its own need torch 2.13 or newer, and this is torch {torch.__version__}; update torch"
            )

    def run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], *, fold: bool = False) -> Any:
        """Run the network's own ``forward``, simulated as far as the simulator knows it.

        Args:
            forward: The network's forward method.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            fold: Whether batch norms are folded in training too; evaluation always folds them.
        """
        simulator = self._simulator
        outputs = self._num_outputs.get(self._network.training)
        if self._compiler is None or outputs is None or not (simulator.is_traceable and can_compile()):
            return self._run_in_python(forward, args, kwargs, fold=fold)
        if simulator.plan is not None and simulator.plan.masked != self._masked:
            self._masked, self._states = simulator.plan.masked, {}
        state = self._network.training, simulator.is_observing, simulator.is_growing, fold
        if state not in self._states:
            self._states[state] = _CompiledState(simulator, self._network, forward, self._compiler, fold=fold)
        graphs = self._states[state]
        if graphs is None:
            return self._run_in_python(forward, args, kwargs, fold=fold)
        graphs.num_outputs, graphs.has_run = outputs, False
        # A graph is whole or it is not compiled: one that is cut at DDP's buckets would be neither.
        whole = graphs_uncut_by_ddp() if distributed.is_available() and distributed.is_initialized() else nullcontext()
        try:
            with whole:
                output = graphs.compiled(*args, **kwargs)
        except compilation_errors() as error:
            cause = backend_error(error)
            if isinstance(cause, NotKnownYetError):
                return self._run_in_python(forward, args, kwargs, fold=fold)
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            if has_too_many_graphs(error):
                reason = f"its batches have more than {_MOST_GRAPHS} shapes"
        else:
            if graphs.has_run:
                return output
            reason = "torch.compile ran it as it is"
        self._states[state] = None
        self._warn(reason)
        return self._run_in_python(forward, args, kwargs, fold=fold)

    def _run_in_python(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], *, fold: bool) -> Any:
        """Simulate, and count the tensors that come back: a graph that has more keeps some of them."""
        output = self._simulator.run(self._network, forward, args, kwargs, fold=fold)
        tensors = set(map(id, tensors_of(output)))
        self._num_outputs[self._network.training] = len(tensors)
        return output

    def _warn(self, reason: str) -> None:
        warnings.warn(f"{type(self._network).__name__} is simulated uncompiled: {reason}", stacklevel=3)


@final
class _CompiledState:
    """The graphs of one state: in training or not, ranges are observed or not, batch norms are folded or not.

    Attributes:
        num_outputs: How many tensors the network returns.
        has_run: Whether a graph of ours ran since this was set to False.
    """

    def __init__(
        self, simulator: Simulator, network: nn.Module, forward: Forward, compiler: Compiler, *, fold: bool
    ) -> None:
        self._simulator, self._network, self._compiler, self._fold = simulator, network, compiler, fold
        self.num_outputs, self.has_run = 0, False
        self.compiled = torch.compile(  # type: ignore[call-overload]  # torch's overloads lack two keywords
            forward,
            backend=self._compile,
            fullgraph=True,
            dynamic=False,
            recompile_limit=_MOST_GRAPHS,
            isolate_recompiles=True,  # other networks of this class have graphs of their own
        )

    def _compile(self, captured: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        simulator, ranges = self._simulator, self._simulator.ranges
        keys = tuple(filter(ranges.has, ranges.keys))
        device = next((leaf.device for leaf in inputs if isinstance(leaf, Tensor)), torch.device("cpu"))
        traced = trace(captured, inputs, simulator, self._network, keys, self.num_outputs, fold=self._fold)

        def known() -> tuple[Tensor, ...]:
            return *ranges.stacked_qparams(keys, device), simulator.learned.trained

        run = self._compiler(traced.module, [*inputs, *known()])

        def simulate(*values: Any) -> Any:
            self.has_run, is_first = True, not is_repeating()
            if is_first:
                simulator.follow(traced.histories)
            outputs = run(*values, *known())
            if not traced.observed:
                return outputs
            *outputs, low, high = outputs
            if is_first:
                ranges.widen(traced.observed, low, high)
            return outputs

        return simulate
