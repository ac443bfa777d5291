"""Module path: which module is running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lightning_optim.quantization.fold import is_foldable
from lightning_optim.quantization.simulation.operator_names import OperatorNames
from lightning_optim.surgery.select import named_modules, plain_name


def identity_of(module: nn.Module) -> int:
    """Return what a module has in common with its stand-ins: ``torch.export`` calls those of shared modules."""
    return id(module._parameters)


def module_names(network: nn.Module) -> dict[int, list[str]]:
    """Return all plain names of every module of a network, by the module's identity; the network's own is empty."""
    names: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(identity_of(module), []).append(plain_name(name))
    return names


@final
class NetworkModules:
    """Modules of the network that was asked for last."""

    def __init__(self) -> None:
        self._known: tuple[nn.Module, dict[int, list[str]], dict[str, nn.Module]] | None = None

    def names_of(self, network: nn.Module) -> Mapping[int, Sequence[str]]:
        """Return the identity of each module -> its plain names."""
        return self._find(network)[0]

    def of(self, network: nn.Module) -> Mapping[str, nn.Module]:
        """Return plain name -> module."""
        return self._find(network)[1]

    @property
    def foldable(self) -> frozenset[str]:
        """Plain names of the batch norms with running statistics."""
        modules = {} if self._known is None else self._known[2]
        return frozenset(name for name, module in modules.items() if is_foldable(module))

    def _find(self, network: nn.Module) -> tuple[dict[int, list[str]], dict[str, nn.Module]]:
        if self._known is None or self._known[0] is not network:
            self._known = (network, module_names(network), named_modules(network))
        return self._known[1], self._known[2]


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
