"""Runtimes by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import lightning_optim.export.runtime as family
from lightning_optim.export.runtime.base import Runtime

_OWN = frozenset({"base", "find"})


def find_runtime(runtime: Runtime | str) -> Runtime:
    """Return the runtime of a name, with its defaults; a runtime is returned as it is.

    Raises:
        ValueError: If no runtime has the name; the message lists the names.

    Example:
        >>> find_runtime("onnxruntime")
        ONNXRuntime(packed=True, rounds_inputs=False)
    """
    if isinstance(runtime, Runtime):
        return runtime
    names = sorted({module.name for module in pkgutil.iter_modules(family.__path__)} - _OWN)
    if runtime not in names:
        raise ValueError(f"runtime must be one of {names} or a Runtime, got {runtime!r}")
    module = importlib.import_module(f"{family.__name__}.{runtime}")
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    found = next(kind for kind in kinds if issubclass(kind, Runtime))
    made: Runtime = found()
    return made
