"""A target by its name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import lightning_optim.export.runtime as family
from lightning_optim.export.runtime.base import Target

_OWN = frozenset({"base", "find"})


def find_target(target: Target | str) -> Target:
    """Return a target with its defaults from the name of its file; a target stays as it is.

    Raises:
        ValueError: If there is no such file; the message lists those that there are.

    Example:
        >>> find_target("onnxruntime")
        ONNXRuntime(packed=True, rounds_inputs=False)
    """
    if isinstance(target, Target):
        return target
    names = sorted({module.name for module in pkgutil.iter_modules(family.__path__)} - _OWN)
    if target not in names:
        raise ValueError(f"target must be one of {names} or a Target, got {target!r}")
    module = importlib.import_module(f"{family.__name__}.{target}")
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    found = next(kind for kind in kinds if issubclass(kind, Target))
    made: Target = found()
    return made
