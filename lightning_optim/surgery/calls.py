"""Calls of a network in one training step: its inputs and its outputs."""

from __future__ import annotations

from typing import Any, final

from torch import nn

from lightning_optim.errors import TapError
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.tap import ModuleCall, Taps


@final
class NetworkCalls:
    """Recorder of the calls of one network, while it is open.

    A network below the LightningModule is tapped by a hook. Of the LightningModule itself, ``forward`` is wrapped on
    the instance instead: under DDP its hooks run a second time, around the training step.
    """

    def __init__(self) -> None:
        self._patches, self._taps = Patches(), Taps()
        self._root_calls: list[ModuleCall] = []
        self._is_root = self._is_open = False
        self.name: str | None = None

    def attach(self, root: nn.Module, name: str, network: nn.Module) -> None:
        """Set hooks on ``network``; nothing is recorded before ``open``.

        Args:
            root: The LightningModule.
            name: Plain name of the network in it; empty if it is ``root`` itself.
            network: The module of that name.
        """
        self.name = name
        self._is_root = network is root
        if self._is_root:
            self._patches.wrap(root, "forward", self._forward)
        else:
            self._taps.attach({name: network})

    def open(self) -> None:
        """Forget what was seen and start to record."""
        self._taps.open()
        self._root_calls, self._is_open = [], True

    def close(self) -> None:
        """Stop recording and forget what was seen."""
        self._taps.close()
        self._root_calls, self._is_open = [], False

    def take(self) -> list[ModuleCall]:
        """Stop recording and return the calls, in order.

        Raises:
            TapError: If there was none.
        """
        calls = self._root_calls if self._is_root else self._taps.take()[self.name or ""]
        self.close()
        if not calls:
            raise TapError(
                "the training step never called the module's own forward, so there is no input for the teacher; "
                "set network to the submodule that it calls"
            )
        return calls

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        self._patches.undo()
        self._taps.remove()
        self.close()
        self.name = None

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if self._is_open:
            self._root_calls.append(ModuleCall(args, kwargs, output))
        return output
