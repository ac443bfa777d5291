"""Copies of a network that callbacks of this package keep, and that follow it when it is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from lightning.pytorch import Trainer
from torch import nn

from lightning_optim.errors import TargetError
from lightning_optim.surgery.select import submodule


@runtime_checkable
class KeepsCopies(Protocol):
    """A callback that keeps copies of a network which must have its shape."""

    def network_copies(self) -> Sequence[tuple[str, nn.Module]]:
        """Name of the network in the LightningModule, and a copy of it, for each copy."""


def kept_copies(trainer: Trainer, network_name: str) -> Iterator[nn.Module]:
    """Every copy of a network, or of what it is a part of, that a callback keeps.

    Args:
        trainer: The trainer.
        network_name: Name of the network in the LightningModule.

    Raises:
        TargetError: If a callback keeps a copy of a part of the network, which would not follow.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the trainer
        if not isinstance(callback, KeepsCopies):
            continue
        for name, copy in callback.network_copies():
            prefix = f"{name}." if name else ""
            if network_name == name or network_name.startswith(prefix):
                yield submodule(copy, network_name.removeprefix(prefix) if network_name != name else "")
            elif prefix.startswith(f"{network_name}." if network_name else ""):
                raise TargetError(
                    f"{type(callback).__name__} keeps an average of {name!r}, which is a part of what is pruned "
                    f"({repr(network_name) if network_name else 'the module itself'}): set network of both callbacks "
                    "to the same name"
                )
