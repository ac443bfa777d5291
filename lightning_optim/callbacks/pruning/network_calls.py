"""Calls of the network under pruning: with what the training step calls it, and whether as a whole or in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_optim.callbacks.trainer.network_observer import NetworkObserver
from lightning_optim.errors import TargetError
from lightning_optim.surgery.example import ExampleInputs
from lightning_optim.surgery.parts import PartsNetwork


@final
class NetworkCalls:
    """Calls of one network, watched in the first steps of a fit.

    Args:
        needs_inputs: Whether it must be known with what the network is called.

    Attributes:
        example: What the network is called with.
        observer: Tells how the training step calls the network, as a whole or in parts.
    """

    def __init__(self, *, needs_inputs: bool) -> None:
        self._needs_inputs = needs_inputs
        self.example = ExampleInputs()
        self.observer = NetworkObserver()

    @property
    def are_known(self) -> bool:
        """Whether it is known how the network is called, as far as it must be."""
        return not self._needs_inputs or (self.observer.is_known and bool(self.example))

    def watch(self, pl_module: LightningModule, network: nn.Module) -> None:
        """Watch how the training step calls a network, and with what."""
        if self._needs_inputs:
            self.example.watch(network)
            if self.observer.is_known and not self.example:  # what parts are given is seen as they are called
                self.observer.load_state_dict(NetworkObserver().state_dict())
            elif self.example and not self.observer.is_known:
                warnings.warn(
                    "a checkpoint cannot hold how the training step calls the parts of the network, since it gives "
                    "them other objects than tensors; they are watched again: what is due in the first two batches is "
                    "done after them",
                    stacklevel=2,
                )
        if not self.observer.is_known:
            note = partial(self._note_inputs, network) if self._needs_inputs else None
            self.observer.watch(pl_module, network, note)

    def _note_inputs(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.example.note(self.as_called(network), inputs, {})

    def as_called(self, network: nn.Module) -> nn.Module:
        """The network as the training step calls it: itself, or its parts as one module."""
        plan = self.observer.plan
        return network if plan is None else PartsNetwork(network, plan)

    def check_reached(self, name: str, layers: Callable[[], Mapping[str, nn.Module]]) -> None:
        """Refuse targets that no training step reaches, at the end of one.

        Args:
            name: The network's.
            layers: Returns the targeted layers, by plain name in the network.

        Raises:
            TargetError: If none of them ran, or the network was not called.
        """
        if self.observer.ran is not None:
            self.observer.check_reached(layers(), "pruned")
        if self._needs_inputs and self.observer.is_known and not self.example:
            raise TargetError(
                f"the training step never called {name or 'the module itself'!r}, so its channels are not known; "
                "set network to what training_step calls"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and primitives."""
        return {"example": self.example.state_dict(), "calls": self.observer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.example.load_state_dict(state["example"])
        self.observer.load_state_dict(state["calls"])

    def release(self) -> None:
        """Watch no longer."""
        self.example.release()
        self.observer.release()
