"""Module path: which module is running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lightning_optim.quantization.simulation.operator_names import OperatorNames
from lightning_optim.surgery.select import plain_name


def identity_of(module: nn.Module) -> int:
    """Return what a module has in common with its stand-ins: ``torch.export`` calls those of shared modules."""
    return id(module._parameters)


def module_names(network: nn.Module) -> dict[int, list[str]]:
    """Return all plain names of every module of a network, by the module's identity; the network's own is empty."""
    names: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(identity_of(module), []).append(plain_name(name))
    return names


def name_below(names: Sequence[str], caller: str) -> str:
    """Return by which of a module's names its caller has it; the first one, if by none.

    Example:
        >>> name_below(["first.act", "second.act"], "second")
        'second.act'
    """
    if len(names) > 1 and caller:
        return next((name for name in names if name.startswith(f"{caller}.")), names[0])
    return names[0]


@final
class ModulePath:
    """Module path: follows, while it is entered, which module of a network runs.

    Hooks for all modules, set for the length of one forward pass, leave nothing behind in the model.

    Args:
        modules: Identity of a module -> its names.
        names: Is told which module runs.
    """

    def __init__(self, modules: Mapping[int, Sequence[str]], names: OperatorNames) -> None:
        self._modules, self._names = modules, names
        self._handles: list[Any] = []

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
        known = self._modules.get(identity_of(module))
        if known is None:
            self._names.begin_unknown()
        else:
            self._names.begin(name_below(known, self._names.call.name), known[0])

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._names.end()
