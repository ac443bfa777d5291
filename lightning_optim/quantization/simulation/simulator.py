"""Simulator: a network as it will compute once its weights and activations are integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.quantization.layers import AssignedLayers, LayerQuantizers
from lightning_optim.quantization.observer.base import Observer, ObserverInput
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.learner import Learner, WeightLearner
from lightning_optim.quantization.simulation.activation_quantizers import ActivationQuantizers
from lightning_optim.quantization.simulation.backend import Backend, FloatBackend
from lightning_optim.quantization.simulation.checkpointed import CheckpointedPass
from lightning_optim.quantization.simulation.deferred_activations import new_states
from lightning_optim.quantization.simulation.learned_values import LearnedValues
from lightning_optim.quantization.simulation.missing_ranges import MissingRanges, why_no_range
from lightning_optim.quantization.simulation.module_path import NetworkModules
from lightning_optim.quantization.simulation.notices import Notices, float_layers
from lightning_optim.quantization.simulation.operator_names import OperatorNames
from lightning_optim.quantization.simulation.placement import Placement
from lightning_optim.quantization.simulation.plan import Plan, Record
from lightning_optim.quantization.simulation.range_watch import masked_messages, messages
from lightning_optim.quantization.simulation.ranges import Ranges
from lightning_optim.quantization.simulation.ranges_of_ranks import merge_alone
from lightning_optim.quantization.simulation.rounding_backend import FirstValues, KnownRanges, SimulationBackend
from lightning_optim.quantization.simulation.tensor_state import SavedStates, TensorStates
from lightning_optim.quantization.simulation.watch import Watch
from lightning_optim.surgery.containers import map_tensors
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.passes import is_seen_again
from lightning_optim.surgery.torch_private import checkpoints_followed

Forward = Callable[..., Any]
Merge = Callable[[Ranges, Any, Callable[[list[Any]], None]], None]
"""Ends a batch: folds its ranges in, and hands the news of all processes over."""


@final
class Simulator:
    """Simulator: runs a network with quantized weights and activations, and learns what that takes.

    The first batch that is observed runs in floating point and shows which operators there are; the second shows the
    ranges of their activations; from the third on the network computes as its integer form would. An operator that a
    later batch is the first to run goes the same way, in three batches of its own.

    Args:
        weight: Quantizer of weights.
        activation: Quantizer of activations.
        observer: Turns ranges of batches into one range.
        layers: Quantizers of some layers in place of these, by key.

    Attributes:
        layers: Layers with quantizers of their own.
        activations: Quantizers of the activations.
        plan: What the recorded batches told; ``None`` before the first.
        ranges: Ranges of the activations.
        learned: What the quantizers train.
        excluded: Names of the modules whose operators stay in floating point.
        example: Arguments of a recorded forward pass, on the CPU; an export needs some.
        notices: What passes have come across, and was warned of.
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
        self.notices = Notices()
        self._watch = Watch.NOTHING
        self._record: Record | None = None
        self._histories: dict[str, int] = {}
        self._states: TensorStates | None = None
        self._modules = NetworkModules()

    def place(self, excluded: frozenset[str], assigned: Mapping[str, str]) -> None:
        """Say which modules stay in floating point, and which have quantizers of their own; what is known stays.

        Args:
            excluded: Names of the modules whose operators stay in floating point.
            assigned: Name of a module -> key of its entry in ``layers``.
        """
        self.excluded, self.layers.assigned = excluded, dict(assigned)

    @property
    def is_observing(self) -> bool:
        """Whether a forward pass widens all ranges."""
        return self._watch is Watch.ALL

    @property
    def is_growing(self) -> bool:
        """Whether a forward pass records what is new, and observes ranges that are missing."""
        return self._watch is not Watch.NOTHING

    @property
    def noticed(self) -> list[str]:
        """Activations that have no range, which passes that take note of nothing came across."""
        return self.notices.missing

    @contextmanager
    def observing(self, watch: Watch = Watch.ALL) -> Iterator[None]:
        """Let forward passes record operators, then widen ranges; ``finish_batch`` takes them in."""
        before, self._watch = self._watch, watch
        try:
            yield
        finally:
            self._watch = before

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
        return self.is_ready and is_known and not counts

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
        if not (self.is_ready or self.is_growing):
            return forward(*args, **kwargs)
        self.learned.refresh()
        is_first = not is_seen_again()
        record = self._begin_record(network, args, kwargs, part) if self.is_growing and is_first else None
        learns = self.is_ready and network.training
        backend = self.backend(self.ranges, self.learned if learns else None, fold=fold)
        backend = backend if is_first else backend.repeated()
        with self.notices.telling(), self.placed(network, backend, record, part) as placement:
            output = forward(*args, **kwargs)
        return placement.finish(output)

    def run_in_float(
        self,
        network: nn.Module,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        watch: Callable[[str, Tensor], object],
    ) -> Any:
        """Run a network's own ``forward`` in floating point, and record operators that are new.

        Args:
            network: The network.
            forward: Its forward method.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            watch: Takes the key of every activation that is to be rounded, and the tensor.
        """
        record = self._begin_record(network, args, kwargs, "")
        with self.placed(network, FloatBackend(watch), record) as placement:
            output = forward(*args, **kwargs)
        return placement.finish(output)

    def backend(
        self, ranges: KnownRanges, learned: FirstValues | None = None, *, fold: bool = False
    ) -> SimulationBackend:
        """Return what simulates the network as it is now.

        Args:
            ranges: Ranges of the activations.
            learned: Takes note of the first values of quantizers that learn some.
            fold: Whether batch norms are folded in training too; evaluation always folds them.
        """
        return SimulationBackend(
            MissingRanges(self.ranges) if ranges is self.ranges and self._watch is Watch.NEW else ranges,
            self.weight_quantizer_of,
            self.activations.quantizer_of,
            observes=self.is_growing,
            folds_all=fold,
            learned=learned,
            notice=None if self.is_growing else self.notices.miss,
            look=None if self.is_growing else partial(self.notices.look, self.ranges.watch.sums),
        )

    def why_no_range(self, key: str) -> str:
        """Return why an activation has no range, and what to do."""
        return why_no_range(key, self.plan or Plan(), self.ranges, self.noticed)

    @contextmanager
    def placed(
        self, network: nn.Module, backend: Backend, record: Record | None = None, part: str = ""
    ) -> Iterator[Placement]:
        """Let ``backend`` carry out the placement for what runs inside, be it in a part of the network."""
        states = None
        if part:
            states = self._states = self._states or new_states()
        names = self.names(record, part)
        place = partial(self.placed_at, network, names)
        run = CheckpointedPass(self._modules.names_of(network), names, place, self.learned)
        with run.entered(backend, record, states) as placement:
            yield placement

    def follow(self, histories: Mapping[str, int]) -> None:
        """Take note of how activations come about in a pass that is compiled."""
        if self.is_growing:
            self._record = self._record or Record(self.plan or Plan(), self._histories)
            for key, history in histories.items():
                self._record.follow(key, history, "compiled ")

    def names(self, record: Record | None = None, start: str = "") -> OperatorNames:
        """Return the names of one forward pass.

        Args:
            record: Notes what is new, if given.
            start: Name of the module that runs when the pass begins.
        """
        if record is not None:
            return OperatorNames(record.sources, grows=True, start=start)
        return OperatorNames({} if self.plan is None else dict(self.plan.sources), start=start)

    def placed_at(
        self,
        network: nn.Module,
        names: OperatorNames,
        backend: Backend,
        record: Record | None = None,
        states: TensorStates | None = None,
    ) -> Placement:
        """Return the placement, to be entered, for what runs in the modules that ``names`` is told of."""
        return Placement(backend, self.plan or Plan(), self.modules_of(network), self.excluded, names, record, states)

    @contextmanager
    def parts_followed(self) -> Iterator[None]:
        """Let parts that a step checkpoints find, in the backward, what the others had put out when they ran first."""

        def again(function: Forward, args: tuple[Any, ...], is_detached: bool) -> Forward:  # torch's
            saved = SavedStates(self._states or new_states(), args, is_detached=is_detached)

            def repeated(*inputs: Any, **kwargs: Any) -> Any:
                now, self._states = self._states, saved.restored(inputs)
                try:
                    return function(*inputs, **kwargs)
                finally:
                    self._states = now

            return repeated

        with checkpoints_followed(again):
            yield

    def forget_tensors(self) -> None:
        """End a step of a network in parts, whose parts know what the others have put out."""
        self._states = None

    def modules_of(self, network: nn.Module) -> Mapping[str, nn.Module]:
        """Return a network's modules by plain name; its own name is empty."""
        return self._modules.of(network)

    def finish_batch(self, merge: Merge | None = None, *, waits: bool = True) -> None:
        """End a batch that was observed: let the plan grow, and fold the ranges in.

        A sum that is seen to hold sentinels stays in floating point from then on, with a warning.

        Args:
            merge: Folds in the ranges of all processes; without it, those of this process alone.
            waits: Whether an accelerator is waited for; otherwise, what it finds is told one batch later.
        """
        record, self._record = self._record, None
        if record is not None and self.plan is not None:
            record.sentinels |= self.plan.reached_sums(self.ranges.masked_keys)
        found = self.learned.found
        is_new = bool(found) or (record is not None and not record.is_empty)
        news = (None if record is None else record.state_dict(), self._modules.foldable, found) if is_new else None
        (merge or merge_alone)(self.ranges, news, self._take_in)
        self._take_findings(waits=waits)

    def _take_in(self, news: list[tuple[dict[str, Any] | None, frozenset[str], Mapping[str, Any]]]) -> None:
        """Take in what is new to some processes, in the order of their ranks."""
        before = self.plan or Plan()
        states = [state for state, _, _ in news if state is not None]
        grown = before.grown(states, frozenset().union(*(names for _, names, _ in news)))
        self._adopt(grown)
        self.ranges.unite(sorted(grown.varied - before.varied))
        for _, _, found in news:
            self.learned.take_in(found)

    def _adopt(self, plan: Plan) -> None:
        """Go on with a plan that has grown."""
        before, self.plan = self.plan or Plan(), plan
        self.ranges.watch.sums = plan.sums | plan.summands
        self.ranges.reset(before.outdated(plan))
        self.notices.tell(masked_messages((plan.masked - before.masked) & before.recorded.keys()))
        self.notices.tell(float_layers(before, plan))

    def _take_findings(self, *, waits: bool) -> None:
        """Act on what was found in the ranges of all processes."""
        findings, plan = self.ranges.findings(waits=waits), self.plan or Plan()
        masked = plan.reached_sums({each.key for each in findings if each.is_masked})
        if masked:
            self._adopt(replace(plan, sentinels=plan.sentinels | masked))
        self.notices.tell(messages(findings, plan.operators))

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
        self._take_findings(waits=True)
        plan = None if self.plan is None else self.plan.state_dict()
        own = {"excluded": sorted(self.excluded), "assigned": dict(self.layers.assigned)}
        return {"plan": plan, **own, "ranges": self.ranges.state_dict(), "learned": self.learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.plan = None if state["plan"] is None else Plan.from_state_dict(state["plan"])
        self.ranges.watch.sums = frozenset() if self.plan is None else self.plan.sums | self.plan.summands
        self.place(frozenset(state["excluded"]), state["assigned"])
        self.ranges.load_state_dict(state["ranges"])
        self.learned.load_state_dict(state["learned"])

    def _begin_record(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], part: str) -> Record:
        if self.example is None and not part:
            self.example = map_tensors(lambda tensor: tensor.detach().cpu().clone(), (args, kwargs))
        self._record = self._record or Record(self.plan or Plan(), self._histories)
        return self._record

    def __reduce__(self) -> tuple[Any, ...]:
        settings = (self.weight_quantizer, self.activations.quantizer, self.observer, self.layers.layers)
        return _rebuild, (settings, self.state_dict(), self.example)


def _rebuild(settings: tuple[Any, ...], state: dict[str, Any], example: Any) -> Simulator:
    simulator = Simulator(*settings)
    simulator.load_state_dict(state)
    simulator.example = example
    return simulator
