"""Packages of the extras, imported when first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from lightning_optim.errors import ExportError


def require(name: str, extra: str = "export") -> ModuleType:
    """Import a package, or a module of it, that an extra of this one installs.

    Args:
        name: The module.
        extra: The extra.

    Raises:
        ExportError: If it is not installed.

    Example:
        >>> require("no_such_package")
        Traceback (most recent call last):
        lightning_optim.errors.ExportError: extra 'export' needs no_such_package: pip install 'lightning-optim[export]'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ExportError(f"extra {extra!r} needs {package}: pip install 'lightning-optim[{extra}]'") from error
