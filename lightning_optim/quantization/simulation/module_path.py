"""Module path: which module is running."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, final

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lightning_optim.surgery.select import plain_name


def module_names(network: nn.Module) -> dict[int, str]:
    """Return the plain name of every module of a network, by the module's identity; the network's own is empty."""
    return {id(module): plain_name(name) for name, module in network.named_modules()}


class CurrentModule(Protocol):
    """Current module: tells which module of a network runs."""

    @property
    def current(self) -> str:
        """Name of the innermost module that runs."""


@final
class ModulePath:
    """Module path: follows, while it is entered, which module of a network runs.

    Hooks for all modules, set for the length of one forward pass, leave nothing behind in the model.

    Args:
        names: Identity of a module -> its name.
        start: Name of the module that runs when this is entered.
    """

    def __init__(self, names: Mapping[int, str], start: str = "") -> None:
        self._names = names
        self._stack: list[str] = [start]
        self._handles: list[Any] = []

    @property
    def current(self) -> str:
        """Name of the innermost module that runs."""
        return self._stack[-1]

    def __enter__(self) -> ModulePath:
        self._handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, module: nn.Module, _: Any) -> None:
        self._stack.append(self._names.get(id(module), self._stack[-1]))

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if len(self._stack) > 1:
            self._stack.pop()
