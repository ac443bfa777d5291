"""Gather what a criterion must see of the data, while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn

from lightning_optim.graph.coupling import Coupling
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.evidence import ActivationMeter, Evidence, Seen
from lightning_optim.pruning.structure.base import Structure
from lightning_optim.pruning.structure.channel import activations_as_read
from lightning_optim.surgery.select import named_modules
from lightning_optim.surgery.shard import local
from lightning_optim.surgery.tap import Call, Taps

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights are scored: output channels come first."""


@final
class PruningEvidence:
    """Collects what ``criterion`` needs and no more, from one pruning step to the next.

    Each training batch lies between ``open`` and ``take`` (or ``close``, if it is not to count).
    """

    def __init__(self, criterion: Criterion, structure: Structure) -> None:
        self._criterion, self._structure = criterion, structure
        self._taps = Taps()
        self._meter = ActivationMeter()
        self._channel_dims: dict[str, int] = {}

    @property
    def is_ready(self) -> bool:
        """Whether everything that the criterion needs has been seen."""
        return Evidence.OUTPUT not in self._criterion.needs or bool(self._meter)

    @property
    def is_of_one_rank(self) -> bool:
        """Whether it holds anything that other ranks have seen otherwise."""
        return bool(self._meter)

    def attach(self, network: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        """Start to watch.

        Args:
            network: The network that trains.
            layers: The targeted layers, by their name in it.
        """
        if Evidence.OUTPUT not in self._criterion.needs:
            return
        # Channels are judged as the next layers read them, and those need not be targets.
        watched = _layers_of(network) if self._structure.needs_coupling else layers
        self._channel_dims = {name: -1 if isinstance(module, nn.Linear) else 1 for name, module in watched.items()}
        self._taps.attach(watched)

    def open(self) -> None:
        """Begin a batch."""
        if self._taps.is_attached:
            self._taps.open()

    def close(self) -> None:
        """Forget the batch."""
        self._taps.close()

    def take(self) -> None:
        """Add what was seen in the batch.

        Raises:
            TapError: If a watched layer was not called.
        """
        if not self._taps.is_attached:
            return
        for name, calls in self._taps.take().items():
            for call in calls:
                self._measure(name, call)

    def seen(self, trainer: Trainer, weights: Mapping[str, Tensor], coupling: Coupling | None) -> dict[str, Seen]:
        """What all ranks have seen of each layer; a collective call.

        Args:
            trainer: The trainer of this rank.
            weights: The weights to be scored, by name.
            coupling: Coupled channels of the network, if the structure needs them.
        """
        means: dict[str, Tensor] = {}
        if Evidence.OUTPUT in self._criterion.needs:
            if trainer.world_size > 1:
                self._meter.sum_over_ranks(distributed.all_reduce)
            means = self._meter.mean()
            if coupling is not None:
                means = activations_as_read(coupling, means, weights)
        return {
            name: Seen(name=name, weight=local(weight.detach()), mean_abs_output=means.get(name))
            for name, weight in weights.items()
        }

    def reset(self) -> None:
        """Begin afresh after a pruning step."""
        self._meter.reset()

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain tensors and integers."""
        return self._meter.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._meter.load_state_dict(state)

    def remove(self) -> None:
        """Stop watching; a second call does nothing."""
        self._taps.remove()

    def _measure(self, name: str, call: Call) -> None:
        activation = call.args[0] if self._structure.needs_coupling else call.output
        self._meter.update(f"{name}.weight", activation, channel_dim=self._channel_dims[name])


def _layers_of(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in named_modules(network).items() if isinstance(module, LAYERS)}
