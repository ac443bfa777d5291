"""Simulator: a network as it will compute once its weights and activations are integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.quantization.fold import is_foldable
from lightning_optim.quantization.layers import AssignedLayers, LayerQuantizers
from lightning_optim.quantization.observer.base import Observer, ObserverInput
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.learner import Learner, WeightLearner
from lightning_optim.quantization.simulation.activation_quantizers import ActivationQuantizers
from lightning_optim.quantization.simulation.backend import Backend, FloatBackend
from lightning_optim.quantization.simulation.deferred_activations import new_states
from lightning_optim.quantization.simulation.learned_values import LearnedValues
from lightning_optim.quantization.simulation.module_path import CurrentModule, ModulePath, module_names
from lightning_optim.quantization.simulation.placement import Placement
from lightning_optim.quantization.simulation.plan import Plan, Record
from lightning_optim.quantization.simulation.ranges import Ranges
from lightning_optim.quantization.simulation.rounding_backend import KnownRanges, SimulationBackend
from lightning_optim.quantization.simulation.tensor_state import TensorStates
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.select import named_modules
from lightning_optim.surgery.torch_private import pytree

Forward = Callable[..., Any]


@final
class Simulator:
    """Simulator: runs a network with quantized weights and activations, and learns what that takes.

    The first batch that is observed runs in floating point and shows which operators there are; the second shows the
    ranges of their activations; from the third on the network computes as its integer form would.

    Args:
        weight: Quantizer of weights.
        activation: Quantizer of activations.
        observer: Turns ranges of batches into one range.
        layers: Quantizers of some layers in place of these, by key.

    Attributes:
        layers: Layers with quantizers of their own.
        activations: Quantizers of the activations.
        plan: What the recorded batch told; ``None`` before.
        ranges: Ranges of the activations.
        learned: What the quantizers train.
        excluded: Names of the modules whose operators stay in floating point.
        example: Arguments of a recorded forward pass, on the CPU; an export needs some.
    """

    def __init__(
        self,
        weight: Quantizer,
        activation: Quantizer,
        observer: Observer,
        layers: Mapping[str, LayerQuantizers] | None = None,
    ) -> None:
        self.weight_quantizer, self.observer = weight, observer
        self.layers, self.learned = AssignedLayers(layers), LearnedValues()
        self.activations = ActivationQuantizers(activation, self.layers, self.learned)
        self.ranges = Ranges(self.activations, observer)
        self.plan: Plan | None = None
        self.excluded: frozenset[str] = frozenset()
        self.example: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._is_observing = False
        self._record: Record | None = None
        self._states: TensorStates | None = None
        self._foldable: frozenset[str] = frozenset()
        self._names: tuple[nn.Module, dict[int, str], dict[str, nn.Module]] | None = None

    def place(self, excluded: frozenset[str], assigned: Mapping[str, str]) -> None:
        """Say which modules stay in floating point, and which have quantizers of their own; what is known stays.

        Args:
            excluded: Names of the modules whose operators stay in floating point.
            assigned: Name of a module -> key of its entry in ``layers``.
        """
        self.excluded, self.layers.assigned = excluded, dict(assigned)

    @property
    def is_observing(self) -> bool:
        """Whether a forward pass records operators, or widens ranges."""
        return self._is_observing

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Let forward passes record operators, then widen ranges; ``finish_batch`` takes them in."""
        was_observing, self._is_observing = self._is_observing, True
        try:
            yield
        finally:
            self._is_observing = was_observing

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Every quantizer that may be used, of the network and of single layers."""
        return (self.weight_quantizer, self.activations.quantizer, *self.layers.quantizers)

    @property
    def is_ready(self) -> bool:
        """Whether operators and ranges are known, so that the network is simulated."""
        return self.plan is not None and bool(self.ranges.keys)

    @property
    def is_traceable(self) -> bool:
        """Whether a forward pass is the same torch functions on other tensors each time."""
        counts = self.is_observing and self.observer.needs is not ObserverInput.RANGE
        is_known = bool(self.learned.keys) or not any(isinstance(rule, Learner) for rule in self.quantizers)
        return self.is_ready and is_known and not counts and all(map(self.ranges.has, self.ranges.keys))

    def weight_quantizer_of(self, key: str) -> Quantizer:
        """Return the quantizer of a layer's weight, by the key of the layer's operator."""
        own = self.layers.entry_of(key)
        rule = self.weight_quantizer if own is None or own.weight_quantizer is None else own.weight_quantizer
        if not isinstance(rule, WeightLearner):
            return rule
        values = self.learned.values(f"weight/{key}", self.learned.device)
        return rule if values is None else rule.bind(values)

    def bits_of(self, key: str) -> tuple[int, int]:
        """Return the widths of an operator's weight, if it has one, and of its output."""
        return self.weight_quantizer_of(key).scheme.bits, self.activations.quantizer_of(key).scheme.bits

    def run(
        self,
        network: nn.Module,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        fold: bool = False,
        part: str = "",
    ) -> Any:
        """Run a network's own ``forward``, simulated as far as the simulator knows it.

        Args:
            network: The network.
            forward: Its forward method.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            fold: Whether batch norms are folded in training too; evaluation always folds them.
            part: Plain name of the module whose forward it is, if the network is called in parts.
        """
        if self.plan is None and self.is_observing:
            return self._run_recorded(network, forward, args, kwargs, part)
        if not (self.is_ready or self.is_observing):
            return forward(*args, **kwargs)
        self.learned.refresh()
        is_first = network.training and torch.is_grad_enabled() and not self.learned.keys
        backend = self.backend(self.ranges, self.learned if is_first and self.is_ready else None, fold=fold)
        with self.placed(network, backend, part=part) as placement:
            output = forward(*args, **kwargs)
        return placement.finish(output)

    def backend(
        self, ranges: KnownRanges, learned: LearnedValues | None = None, *, fold: bool = False
    ) -> SimulationBackend:
        """Return what simulates the network as it is now.

        Args:
            ranges: Ranges of the activations.
            learned: Takes note of the first values of quantizers that learn some.
            fold: Whether batch norms are folded in training too; evaluation always folds them.
        """
        return SimulationBackend(
            ranges,
            self.weight_quantizer_of,
            self.activations.quantizer_of,
            observes=self.is_observing,
            folds_all=fold,
            learned=learned,
        )

    @contextmanager
    def placed(
        self, network: nn.Module, backend: Backend, record: Record | None = None, part: str = ""
    ) -> Iterator[Placement]:
        """Let ``backend`` carry out the placement for what runs inside, be it in a part of the network."""
        states = None
        if part:
            states = self._states = self._states or new_states()
        with (
            ModulePath(self._modules_of(network)[0], part) as path,
            self.placed_at(network, path, backend, record, states) as placement,
        ):
            yield placement

    def placed_at(
        self,
        network: nn.Module,
        path: CurrentModule,
        backend: Backend,
        record: Record | None = None,
        states: TensorStates | None = None,
    ) -> Placement:
        """Return the placement, to be entered, for what runs in the module that ``path`` names."""
        return Placement(backend, self.plan or Plan(), self.modules_of(network), self.excluded, path, record, states)

    def forget_tensors(self) -> None:
        """End a step of a network in parts, whose parts know what the others have put out."""
        self._states = None

    def modules_of(self, network: nn.Module) -> Mapping[str, nn.Module]:
        """Return a network's modules by plain name; its own name is empty."""
        return self._modules_of(network)[1]

    def finish_batch(self, merge: Callable[[Ranges], None] | None = None) -> None:
        """End a batch that was observed: draw the plan, or fold the ranges in.

        Args:
            merge: Folds in the ranges of all processes; without it, those of this process alone.
        """
        if self._record is not None:
            self.plan = self._record.plan(self._foldable)
            self._record = None
        elif self.plan is not None:
            (merge or merge_alone)(self.ranges)

    def discard_batch(self) -> None:
        """Forget what an unfinished batch showed."""
        self._record = self._states = None
        self.ranges.discard()
        self.learned.discard()

    def forward_of(self, network: nn.Module) -> Forward:
        """Return a function that runs ``network`` in evaluation, simulated, without gradients and side effects.

        Raises:
            RuntimeError: If the simulator has not seen two batches.
        """
        if not self.is_ready:
            raise RuntimeError("there are no activation ranges yet: train at least two batches within the window")
        twin = eval_copy(network)
        plain = type(twin).forward.__get__(twin)

        def simulated(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                return self.run(twin, plain, args, kwargs)

        return simulated

    def state_dict(self) -> dict[str, Any]:
        """Return plan and ranges, as primitives and tensors."""
        plan = None if self.plan is None else self.plan.state_dict()
        own = {"excluded": sorted(self.excluded), "assigned": dict(self.layers.assigned)}
        return {"plan": plan, **own, "ranges": self.ranges.state_dict(), "learned": self.learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.plan = None if state["plan"] is None else Plan.from_state_dict(state["plan"])
        self.place(frozenset(state["excluded"]), state["assigned"])
        self.ranges.load_state_dict(state["ranges"])
        self.learned.load_state_dict(state["learned"])

    def _run_recorded(
        self, network: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], part: str
    ) -> Any:
        if self._record is None:
            self._record = Record()
        if self.example is None and not part:
            self.example = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().cpu().clone(), (args, kwargs))
        _, modules = self._modules_of(network)
        self._foldable = frozenset(name for name, module in modules.items() if is_foldable(module))
        with self.placed(network, FloatBackend(), self._record, part) as placement:
            output = forward(*args, **kwargs)
        return placement.finish(output)

    def _modules_of(self, network: nn.Module) -> tuple[dict[int, str], dict[str, nn.Module]]:
        if self._names is None or self._names[0] is not network:
            self._names = (network, module_names(network), named_modules(network))
        return self._names[1], self._names[2]

    def __reduce__(self) -> tuple[Any, ...]:
        settings = (self.weight_quantizer, self.activations.quantizer, self.observer, self.layers.layers)
        return _rebuild, (settings, self.state_dict(), self.example)


def _rebuild(
    settings: tuple[Quantizer, Quantizer, Observer, Mapping[str, LayerQuantizers]], state: dict[str, Any], example: Any
) -> Simulator:
    simulator = Simulator(*settings)
    simulator.load_state_dict(state)
    simulator.example = example
    return simulator


def merge_alone(ranges: Ranges) -> None:
    """Fold in the batch's ranges of this process alone."""
    ranges.register(ranges.new_keys)
    ranges.merge(ranges.message())
