"""Plain parts of a checkpoint that holds objects as well: read without making one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch


@final
class _Placeholder:
    """Stands in for a class or a function that a file names: takes whatever it is called with, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_plain_parts(path: Path) -> dict[str, Any]:
    """Entries of a Trainer's checkpoint that hold nothing but tensors and primitives.

    Hyperparameters may be of any class (a ``Namespace``, a configuration, a partial function), and so may the states
    of other callbacks. The safe loader of torch gets a placeholder for each, so that no code of the file or of those
    classes runs; what holds one is left out.

    Args:
        path: A file that ``torch.save`` has written.

    Raises:
        ValueError: If the file is no checkpoint of a Trainer, or its weights are not plain.
        Exception: Whatever the safe loader raises for what it does not know.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(_Placeholder, name) for name in names]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or "pytorch-lightning_version" not in content:
        raise ValueError(f"{path} is no checkpoint of a Trainer")
    states = content.get("callbacks")
    if isinstance(states, Mapping):
        content = {**content, "callbacks": _plain_entries(states)}
    plain = _plain_entries(content)
    if "state_dict" not in plain:
        raise ValueError(f"{path} has no plain state_dict")
    return plain


def _plain_entries(content: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in content.items() if _is_plain(value) and _is_plain(key)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(item) for item in value)
    return not isinstance(value, _Placeholder) and value is not _Placeholder
