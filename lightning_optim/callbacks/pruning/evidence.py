"""Evidence for a criterion, gathered while a model trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, final

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lightning_optim.errors import TapError
from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import Evidence, LayerEvidence, RunningSum, Statistic, measure, merge_ranks
from lightning_optim.pruning.evidence_of_ranks import gather_ranks, share_of_rank
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.coupled import activations_as_read
from lightning_optim.pruning.structure.neuron import Neuron
from lightning_optim.pruning.structure.weight import Weight
from lightning_optim.surgery.cut import CutPlan, taken_out
from lightning_optim.surgery.layer_kinds import LAYERS, is_input_first, outputs_first, role_of
from lightning_optim.surgery.parametrized import layer_name, pruned_weight, scored_weight, weight_name, weight_names
from lightning_optim.surgery.readers import Readers
from lightning_optim.surgery.select import named_modules
from lightning_optim.surgery.shard import is_sharded, local, part_of_rank
from lightning_optim.surgery.tap import ModuleCall, Taps
from lightning_optim.surgery.torch_private import BatchNorm


@final
class PruningEvidence:
    """Evidence that ``criterion`` needs and no more, from one pruning step to the next.

    Each training batch lies between ``open`` and ``take`` (or ``close``, if it is not to count). Gradients are read
    where they are final.
    """

    def __init__(self, criterion: Criterion, structure: Structure) -> None:
        self._criterion, self._structure = criterion, structure
        statistics = [need for need in criterion.needs if isinstance(need, Statistic)]
        running_sums = {statistic: statistic.start() for statistic in sorted(statistics, key=lambda each: each.name)}
        self._gradients = {
            each: running_sum for each, running_sum in running_sums.items() if each.of is Evidence.GRADIENT
        }
        self._activations = {
            each: running_sum for each, running_sum in running_sums.items() if each.of is not Evidence.GRADIENT
        }
        self._taps, self._norms = Taps(), Readers()
        self._layers: dict[str, nn.Module] = {}
        self._watched: dict[str, nn.Module] = {}
        self._waiting_since: int | None = None

    @property
    def layers(self) -> Mapping[str, nn.Module]:
        """The layers that are watched, by their name in the network."""
        return self._layers

    @property
    def needs_gradients(self) -> bool:
        """Whether the criterion scores by gradients."""
        return bool(self._gradients)

    @property
    def _falls(self) -> Literal["weight", "channel"]:
        is_whole = self._structure.needs_coupling or isinstance(self._structure, Neuron)
        return "channel" if is_whole else "weight"

    # The layers that are watched.

    def attach(self, trainer: Trainer, network: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        """Start to watch, or go on with other layers: what is gathered of those that stay is kept.

        Args:
            trainer: The trainer of this rank, with its optimizers.
            network: The network that trains.
            layers: The targeted layers, by their name in it.

        Raises:
            ValueError: If the criterion cannot score these layers, or needs what they do not have.
        """
        idle = self._untrained(trainer, layers)
        newcomers = [name for name in idle if self._layers and name not in self._layers]
        if newcomers:
            rank_zero_warn(f"{self._refusal(newcomers)}; until then it is not pruned")
        before = dict(self._layers)
        order = [*(name for name in before if name in layers), *layers]  # what is coupled keeps its name
        self._layers = {name: layers[name] for name in order if name not in newcomers}
        self._waiting_since = None
        norms = _modules_of(network, (BatchNorm,))
        if not self._layers:
            return
        self._check([name for name in idle if name not in newcomers], norms)
        self._taps.remove()
        if self._activations:
            # Channels are judged as the next layers read them, and those need not be targets.
            reads_all = self._structure.needs_coupling and any(each.of is Evidence.OUTPUT for each in self._activations)
            readers = {name: each for name, each in _modules_of(network, LAYERS).items() if weight_name(name, each)}
            self._watched = readers if reads_all else self._layers
            self._taps.attach(self._watched)
        if Evidence.MODULE in self._criterion.needs:
            if before and self._layers.keys() - before.keys():
                self._norms.remove()  # which norms the newcomers have is seen in the next batch
                self._norms = Readers()
            self._norms.attach(self._layers, norms)

    def _untrained(self, trainer: Trainer, layers: Mapping[str, nn.Module]) -> list[str]:
        """Layers whose gradients are needed, and that no optimizer has."""
        groups = [group["params"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        trained = {id(parameter) for parameters in groups for parameter in parameters}
        return [name for name, layer in layers.items() if self._gradients and id(_weight(layer)) not in trained]

    def _refusal(self, names: list[str]) -> str:
        return (
            f"{type(self._criterion).__name__!r} scores need gradients, but no optimizer trains {_some(names)}; leave "
            "it out in targets.exclude, or give it to an optimizer"
        )

    def _check(self, idle: list[str], norms: Mapping[str, nn.Module]) -> None:
        kind = type(self._criterion).__name__
        if idle:
            raise ValueError(self._refusal(idle))
        if Evidence.MODULE in self._criterion.needs and not norms:
            raise ValueError(f"{kind!r} scores need batch norms, but the network has none; choose another criterion")
        sharded = [name for name, each in self._layers.items() if is_input_first(each) and is_sharded(_weight(each))]
        if sharded and (self._activations or not isinstance(self._structure, Weight)):
            raise ValueError(
                f"each rank holds some inputs of all outputs of {_some(sharded)}, so that only single weights of it "
                "can be pruned, by a criterion that sees no activations: choose structure 'Weight' and criterion "
                "'Magnitude', or leave it out in targets.exclude"
            )
        # A criterion that refuses a layer whatever its evidence must do so here, not in the middle of the fit.
        self._criterion(self._blank(min(self._layers, key=lambda name: _weight(self._layers[name]).numel())))

    def _blank(self, name: str) -> LayerEvidence:
        """Evidence of a layer whose weights, inputs, outputs and gradients are zeros."""
        layer = self._layers[name]
        shape = outputs_first(layer, _weight(layer)).shape
        sizes = {Evidence.OUTPUT: shape[:1], Evidence.INPUT: torch.Size([shape[1] * getattr(layer, "groups", 1)])}
        totals = {each: torch.zeros(sizes.get(each.of, shape)) for each in (*self._gradients, *self._activations)}
        return LayerEvidence(
            name=_name(name, layer),
            weight=torch.zeros(shape),
            falls=self._falls,
            norm=nn.BatchNorm1d(shape[0]),
            totals=totals,
            counts=dict.fromkeys(totals, 1),
        )

    # Each batch, and each step of an optimizer.

    def open(self) -> None:
        """Begin a batch."""
        self._norms.open()
        if self._taps.is_attached:
            self._taps.open()

    def close(self) -> None:
        """Forget the batch."""
        self._norms.close()
        self._taps.close()

    def take(self) -> None:
        """Add what was seen in the batch.

        Raises:
            TapError: If a targeted layer was not called; others, as copies of the network, need not be.
        """
        try:
            self._norms.take()
            seen = self._taps.take(may_be_silent=self._watched.keys() - self._layers.keys())
        except TapError as error:
            raise TapError(f"{type(self._criterion).__name__!r}: {error} Or leave it out in targets.exclude") from None
        for name, calls in seen.items():
            for call in calls:
                self._measure(name, call)

    def _measure(self, name: str, call: ModuleCall) -> None:
        layer = self._watched[name]
        inputs = call.args[0] if call.args else call.kwargs["input"]
        channel_dim = 1 - _weight(layer).dim()
        for statistic, running_sum in self._activations.items():
            reads = statistic.of is Evidence.INPUT or self._structure.needs_coupling
            if statistic.of is Evidence.OUTPUT or name in self._layers:
                running_sum.update(
                    _name(name, layer), *measure(statistic.term, inputs if reads else call.output, channel_dim)
                )

    def read_gradients(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Add the gradients that ``optimizer`` is about to use: accumulated, unscaled, not yet clipped."""
        if not self._gradients:
            return
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        weights = {name: _weight(layer) for name, layer in self._layers.items() if id(_weight(layer)) in stepped}
        found = {name: local(weight.grad) for name, weight in weights.items() if weight.grad is not None}
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and not all(bool(gradient.isfinite().all()) for gradient in found.values()):
            return  # the scaler will skip this step
        for name, gradient in found.items():
            layer = self._layers[name]
            weight = outputs_first(layer, local(weights[name].detach()).float())
            for statistic, running_sum in self._gradients.items():
                term = statistic.term(weight, outputs_first(layer, gradient.detach().float()))
                running_sum.update(_name(name, layer), term)

    # The evidence.

    def is_ready(self, epoch: int) -> bool:
        """Whether there is all evidence that a pruning step needs; to be asked only where one is due.

        Args:
            epoch: The trainer's current epoch.

        Raises:
            TapError: If some was missing for a whole epoch.
        """
        if not self._layers:
            return True
        missing = [
            name
            for name, layer in self._layers.items()
            if any(_name(name, layer) not in running_sum for running_sum in self._gradients.values())
        ]
        unseen = any(
            _name(name, layer) not in running_sum
            for name, layer in self._layers.items()
            for running_sum in self._activations.values()
        )
        if missing and self._waiting_since is not None and epoch > self._waiting_since + 1:
            raise TapError(
                f"{type(self._criterion).__name__!r} scores need gradients, but {_some(missing)} had none in a whole "
                "epoch: is the layer unused, or stepped without Lightning's optimizer? Leave it out in targets.exclude"
            )
        is_ready = not missing and not unseen
        is_ready &= self._norms.is_known or Evidence.MODULE not in self._criterion.needs
        if is_ready:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = epoch
        return is_ready

    def prunable(
        self,
        trainer: Trainer,
        parameters: Mapping[str, nn.Parameter],
        coupling: Coupling | None,
        refused: Collection[str],
    ) -> dict[str, LayerEvidence]:
        """Evidence of the layers of which something can fall, by the name of their weight; a collective call.

        Args:
            trainer: The trainer of this rank.
            parameters: The network's parameters, by name.
            coupling: Coupled channels of the network, if the structure needs them.
            refused: Names of weights that must stay.
        """
        weights = {name: parameters[name] for name in weight_names(self._layers)}
        return {
            name: seen
            for name, seen in self.seen(trainer, weights, coupling).items()
            if name not in refused and (coupling is None or self._structure.concerns(name, coupling))
        }

    def seen(
        self, trainer: Trainer, weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, LayerEvidence]:
        """Evidence of each layer, from all ranks; a collective call.

        Args:
            trainer: The trainer of this rank.
            weights: The weights to be scored, by name.
            coupling: Coupled channels of the network, if the structure needs them.
        """
        if trainer.world_size > 1:
            # Gradients are those of all ranks already: the strategy has averaged them.
            merge_ranks(list(self._activations.values()), distributed.all_reduce)
        means = {statistic: running_sum.mean() for statistic, running_sum in self._activations.items()}
        for statistic, mean in means.items():
            if statistic.of is Evidence.OUTPUT and coupling is not None:
                in_order = {name: self._outputs_first(name, weight) for name, weight in weights.items()}
                means[statistic] = activations_as_read(coupling, mean, in_order)
        return {name: self._seen(name, weight, means) for name, weight in weights.items()}

    def _seen(self, name: str, weight: Tensor, means: Mapping[Statistic, Mapping[str, Tensor]]) -> LayerEvidence:
        totals = {
            each: running_sum.totals[name] for each, running_sum in self._gradients.items() if name in running_sum
        }
        counts = {
            each: running_sum.counts[name] for each, running_sum in self._gradients.items() if name in running_sum
        }
        for statistic, mean in means.items():
            if name in mean:
                is_by_row = statistic.of is Evidence.OUTPUT
                totals[statistic] = part_of_rank(mean[name], weight) if is_by_row else mean[name]
                counts[statistic] = 1
        layer = self._layers.get(layer_name(name))
        return LayerEvidence(
            name=name,
            weight=self._outputs_first(name, local(weight.detach() if layer is None else scored_weight(layer))),
            falls=self._falls,
            norm=self._norms.of(layer_name(name)),
            totals=totals,
            counts=counts,
        )

    def _outputs_first(self, name: str, weight: Tensor) -> Tensor:
        layer = self._layers.get(layer_name(name))
        return weight if layer is None else outputs_first(layer, weight)

    def reset(self) -> None:
        """Reset the evidence after a pruning step, but for the statistics that run on."""
        for statistic, running_sum in (self._gradients | self._activations).items():
            if statistic.resets_at_step:
                running_sum.reset()

    def cut(self, plan: CutPlan, *prefixes: str) -> None:
        """Follow a cut of the network: ``plan`` names its tensors; activations are gathered afresh.

        Args:
            plan: What is kept of the network's tensors.
            prefixes: Where that and its copies lie in the LightningModule; names here are those of the network.
        """
        gone = tuple(f"{name}." for name in taken_out(plan))
        if gone:  # no input reaches their layers
            self._layers = {name: layer for name, layer in self._layers.items() if not f"{name}.".startswith(gone)}
            self._watched = {name: layer for name, layer in self._watched.items() if not f"{name}.".startswith(gone)}
            is_watching = self._taps.is_attached
            self._taps.remove()
            if is_watching:
                self._taps.attach(self._watched)
        for running_sum in self._activations.values():
            running_sum.reset()
        for running_sum in self._gradients.values():
            for name, cuts in plan.items():
                layer = self._layers.get(layer_name(name))
                for dim, kept in cuts:
                    running_sum.keep(name, dim if layer is None else role_of(layer, dim), kept)

    def remove(self) -> None:
        """Stop watching; a second call does nothing."""
        self._taps.remove()
        self._norms.remove()

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's evidence as plain tensors and primitives; ``gather`` returns that of all ranks."""
        shared, own = self._by_sharing()
        return {"shared": _states(shared), "ranks": [_states(own)], "norms": self._norms.state_dict()}

    def gather(self, trainer: Trainer) -> dict[str, Any]:
        """Return ``state_dict`` with the evidence of every rank; a collective call, for a checkpoint."""
        state = self.state_dict()
        state["ranks"] = gather_ranks(state["ranks"][0], trainer.world_size)
        return state

    def load_state_dict(self, state: Mapping[str, Any], trainer: Trainer) -> None:
        """Continue from ``gather``, on any number of ranks."""
        _, own = self._by_sharing()
        sharded = {statistic.name for statistic in own if statistic.of is Evidence.GRADIENT}
        found = {**state["shared"], **share_of_rank(state["ranks"], trainer.global_rank, trainer.world_size, sharded)}
        for statistic, running_sum in (self._gradients | self._activations).items():
            if statistic.name in found:
                running_sum.load_state_dict(found[statistic.name], trainer.strategy.root_device)
        self._norms.load_state_dict(state["norms"])

    def _by_sharing(self) -> tuple[dict[Statistic, RunningSum], dict[Statistic, RunningSum]]:
        """Statistics that are the same on every rank, and those that are not."""
        if any(is_sharded(_weight(layer)) for layer in self._layers.values()):
            return {}, self._gradients | self._activations
        return self._gradients, self._activations


def _states(running_sums: Mapping[Statistic, RunningSum]) -> dict[str, Any]:
    return {statistic.name: running_sum.state_dict() for statistic, running_sum in running_sums.items()}


def _modules_of(network: nn.Module, types: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in named_modules(network).items() if isinstance(module, types)}


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = pruned_weight(layer)
    assert weight is not None  # others are refused where targets are chosen
    return weight


def _name(name: str, layer: nn.Module) -> str:
    found = weight_name(name, layer)
    assert found is not None
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
