"""Packages of the ``export`` extra, imported when first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from lightning_optim.errors import ExportError


def require(name: str) -> ModuleType:
    """Import a package of the ``export`` extra.

    Raises:
        ExportError: If it is not installed.

    Example:
        >>> require("no_such_package")
        Traceback (most recent call last):
        lightning_optim.errors.ExportError: export needs no_such_package: pip install 'lightning-optim[export]'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"export needs {name}: pip install 'lightning-optim[export]'") from error
