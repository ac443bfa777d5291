"""What ``torch.compile`` has put around a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch._dynamo import OptimizedModule
from torch._dynamo.eval_frame import innermost_backend

Compiler = Callable[..., Callable[..., Any]]
"""A backend of ``torch.compile``: takes a graph module and its inputs."""


@final
@dataclass(frozen=True, slots=True)
class Compilation:
    """How a network is compiled.

    Args:
        compiler: The backend.
        wrapper: Whose method of which name leads to the compiled network; ``None`` if what calls it is compiled.
        call: Calls the network itself, uncompiled.
    """

    compiler: Compiler
    wrapper: tuple[nn.Module, str] | None
    call: Callable[..., Any]


def uncompiled(network: nn.Module) -> nn.Module:
    """Return what lies below a wrapper of ``torch.compile``, if there is one."""
    if not isinstance(network, OptimizedModule):
        return network
    inner: nn.Module = network._orig_mod
    return inner


def find_compilation(
    root: nn.Module, network: nn.Module, compiler_of_root: Callable[..., Any] | None = None
) -> Compilation | None:
    """Tell whether and how a network is compiled.

    Args:
        root: The LightningModule.
        network: Its network, below any wrapper.
        compiler_of_root: What compiles the frames of ``root``, if that cannot be read from ``root`` itself.
    """
    for module in root.modules():
        if isinstance(module, OptimizedModule) and module._orig_mod is network:
            return _compilation(module.dynamo_ctx.callback, (module, "forward"), network)
    if network._compiled_call_impl is not None:
        return _compilation(_callback_of(network), (network, "_compiled_call_impl"), network)
    around = (module for module in root.modules() if any(inner is network for inner in module.modules()))
    callbacks = (compiler_of_root, *(_callback_of(module) for module in around))
    return _compilation(next((callback for callback in callbacks if callback is not None), None), None, network)


def _callback_of(module: nn.Module) -> Any:
    """Return what a module's own compilation calls; ``None`` if it has none."""
    if isinstance(module, OptimizedModule):
        return module.dynamo_ctx.callback
    if module._compiled_call_impl is not None:  # by Module.compile, which keeps its backend in a closure alone
        return inspect.getclosurevars(module._compiled_call_impl).nonlocals.get("callback")
    return None


def _compilation(callback: Any, wrapper: tuple[nn.Module, str] | None, network: nn.Module) -> Compilation | None:
    if not callable(callback):
        return None  # compilation is switched off
    return Compilation(innermost_backend(callback), wrapper, network._call_impl)
