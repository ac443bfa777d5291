"""Compilation of a network by ``torch.compile``: with which backend, and from where it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from lightning_optim.surgery.torch_private import (
    COMPILED_CALL,
    backend_of,
    frame_compiler,
    is_call_compiled,
    is_compiled_wrapper,
    plain_call,
    uncompiled,
)

Compiler = Callable[..., Callable[..., Any]]
"""A backend of ``torch.compile``: takes a graph module and its inputs."""


@final
@dataclass(frozen=True, slots=True)
class Compilation:
    """Compilation of a network: its backend, and what leads to it.

    Args:
        compiler: The backend.
        wrapper: Module, and name of its method, that lead to the compiled network; ``None`` if its caller is compiled.
        call: Calls the network itself, uncompiled.
    """

    compiler: Compiler
    wrapper: tuple[nn.Module, str] | None
    call: Callable[..., Any]


def without_compilation(model: nn.Module) -> nn.Module:
    """Take every wrapper of ``torch.compile`` out of a model, so that its names are plain; it is changed in place.

    Example:
        >>> import torch
        >>> model = nn.Sequential(torch.compile(nn.Linear(2, 1)))
        >>> [name for name, _ in without_compilation(model).named_parameters()]
        ['0.weight', '0.bias']
    """
    for module in [*model.modules()]:
        for name, child in module._modules.items():
            if child is not None and is_compiled_wrapper(child):
                module._modules[name] = uncompiled(child)
    return uncompiled(model)


def compile_anew(root: nn.Module, compiler_of_root: Callable[..., Any] | None = None) -> None:
    """Forget what ``torch.compile`` has compiled, if anything of a model is compiled; the next call compiles anew.

    What was compiled before the model was changed is of no use any more, and yet counts for the limit of
    recompilations (``torch._dynamo.config.recompile_limit``), beyond which everything silently runs uncompiled.

    Args:
        root: The model.
        compiler_of_root: As for ``find_compilation``.
    """
    if compiler_of_root is not None or any(is_compiled_wrapper(m) or is_call_compiled(m) for m in root.modules()):
        torch.compiler.reset()


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
        if is_compiled_wrapper(module) and uncompiled(module) is network:
            return _compilation(frame_compiler(module), (module, "forward"), network)
    if is_call_compiled(network):
        return _compilation(frame_compiler(network), (network, COMPILED_CALL), network)
    around = (module for module in root.modules() if any(inner is network for inner in module.modules()))
    callbacks = (compiler_of_root, *(frame_compiler(module) for module in around))
    return _compilation(next((callback for callback in callbacks if callback is not None), None), None, network)


def _compilation(callback: Any, wrapper: tuple[nn.Module, str] | None, network: nn.Module) -> Compilation | None:
    if not callable(callback):
        return None  # compilation is switched off
    return Compilation(backend_of(callback), wrapper, plain_call(network))
