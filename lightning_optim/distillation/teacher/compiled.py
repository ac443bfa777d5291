"""Compilation of a teacher: of weights that never change, its graph holds what can be computed from them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_optim.surgery.torch_private import ISOLATES_GRAPHS, is_compiled_wrapper


def compile_teacher(module: nn.Module, backend: str, *, is_constant: bool) -> Callable[..., Any]:
    """Compile a teacher anew, with the hooks that are on it now.

    Args:
        module: The network, frozen; one that is compiled already stays as it is.
        backend: Backend of ``torch.compile``.
        is_constant: Whether its weights never change, so that batch norms are folded and weights laid out beforehand.
    """
    if is_compiled_wrapper(module):
        return module
    settings: dict[str, Any] = {"isolate_recompiles": True} if ISOLATES_GRAPHS else {}
    if not ISOLATES_GRAPHS:
        torch.compiler.reset()  # graphs are kept by code, and know neither new hooks nor other constants
    if backend == "inductor" and is_constant:
        settings["options"] = {"freezing": True}
    compiled: Callable[..., Any] = torch.compile(module, backend=backend, **settings)
    return compiled
