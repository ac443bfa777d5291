"""Containers: where the tensors are in what a network takes or returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, final

from torch import Tensor, nn

from lightning_optim.surgery.torch_private import pytree

_Key = str | int


@final
@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of one container, and what makes such a container of other parts.

    Args:
        keys: Names or places of the parts.
        values: The parts.
        build: Makes a container of as many others; ``None`` where that is not known.
    """

    keys: Sequence[_Key]
    values: Sequence[Any]
    build: Callable[[Sequence[Any]], Any] | None


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor in a value, and return containers of the same kind with what comes back.

    Containers are those that torch knows (sequences, dictionaries, named tuples, what is registered as a pytree node,
    such as the outputs of transformers), dataclasses, and what else is a mapping or a sequence; they may be nested. A
    container of which no part changes is returned as it is.

    Args:
        change: Takes a tensor.
        value: The value.

    Raises:
        TypeError: If a tensor changes that is held by an object of another kind, which nobody knows how to make anew.

    Example:
        >>> import torch
        >>> map_tensors(torch.relu, {"logits": (torch.tensor([-1.0, 2.0]), None)})
        {'logits': (tensor([0., 2.]), None)}
    """
    if isinstance(value, Tensor):
        return change(value)
    parts = _parts_of(value)
    if parts is None:
        return value
    changed = [map_tensors(change, part) for part in parts.values]
    if all(new is old for new, old in zip(changed, parts.values, strict=True)):
        return value
    if parts.build is None:
        raise TypeError(
            f"a {type(value).__name__} holds tensors, and nothing tells how to make another one: return a dict, a "
            "tuple or a dataclass, or register the class by torch.utils._pytree.register_pytree_node"
        )
    return parts.build(changed)


def find_tensors(value: Any, path: tuple[_Key, ...] = ()) -> Iterator[tuple[tuple[_Key, ...], Tensor]]:
    """Find every tensor in a value, with the keys that lead to it.

    Example:
        >>> import torch
        >>> [path for path, _ in find_tensors({"logits": torch.ones(1), "hidden": (torch.ones(1), None)})]
        [('logits',), ('hidden', 0)]
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    parts = _parts_of(value)
    for key, part in zip(parts.keys, parts.values, strict=True) if parts is not None else ():
        yield from find_tensors(part, (*path, key))


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor in a value."""
    return [tensor for _, tensor in find_tensors(value)]


def name_of(path: Sequence[_Key]) -> str:
    """Join the keys that lead to a tensor by dots.

    Example:
        >>> name_of(("heads", 0, "logits"))
        'heads.0.logits'
    """
    return ".".join(map(str, path))


def as_plain(value: Any) -> Any:
    """Return a value with dictionaries in place of the containers that torch does not know.

    The order stays; of a container that torch does not know, only what holds tensors is kept.

    Example:
        >>> import torch
        >>> Answer = dataclass(type("Answer", (), {"__annotations__": {"logits": Tensor}}))
        >>> as_plain((Answer(logits=torch.ones(1)), None))
        ({'logits': tensor([1.])}, None)
    """
    parts = None if isinstance(value, Tensor) else _parts_of(value)
    if parts is None:
        return value
    if not _is_node(value):
        held = zip(map(str, parts.keys), parts.values, strict=True)
        return {key: as_plain(part) for key, part in held if tensors_of(part)}
    values = [as_plain(part) for part in parts.values]
    unchanged = all(new is old for new, old in zip(values, parts.values, strict=True))
    assert parts.build is not None
    return value if unchanged else parts.build(values)


def _parts_of(value: Any) -> _Parts | None:
    """Parts of a container; ``None`` for what is none."""
    if value is None or isinstance(value, (str, bytes, int, float, complex, type, nn.Module)):
        return None
    if _is_node(value):
        return _node_parts(value)
    if isinstance(value, Mapping):
        keys = [*value]
        is_mutable = isinstance(value, MutableMapping)
        return _Parts(keys, [value[key] for key in keys], _setter(value, keys) if is_mutable else None)
    if is_dataclass(value):
        names = [each.name for each in fields(value)]
        return _Parts(names, [getattr(value, name) for name in names], lambda parts: _with_fields(value, names, parts))
    if isinstance(value, Sequence):
        places = range(len(value))
        return _Parts(places, [*value], _setter(value, places) if isinstance(value, MutableSequence) else None)
    held = {name: each for name, each in getattr(value, "__dict__", {}).items() if isinstance(each, Tensor)}
    return _Parts([*held], [*held.values()], None) if held else None  # an object of a class of one's own


def _is_node(value: Any) -> bool:
    """Whether torch knows a value as a container."""
    leaves = pytree.tree_leaves(value, is_leaf=lambda part: part is not value)
    return not (len(leaves) == 1 and leaves[0] is value)


def _node_parts(value: Any) -> _Parts:
    values, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
    keys: Sequence[_Key] = range(len(values))
    if isinstance(value, Mapping) and len(value) == len(values):
        keys = [*value]
    elif isinstance(value, tuple) and getattr(value, "_fields", None):
        keys = value._fields  # type: ignore[attr-defined]  # a named tuple
    elif is_dataclass(value) and len(fields(value)) == len(values):
        keys = [each.name for each in fields(value)]
    return _Parts(keys, values, lambda parts: pytree.tree_unflatten(parts, spec))


def _setter(value: Any, keys: Sequence[_Key]) -> Callable[[Sequence[Any]], Any]:
    def build(parts: Sequence[Any]) -> Any:
        made = copy.copy(value)
        for key, part in zip(keys, parts, strict=True):
            made[key] = part
        return made

    return build


def _with_fields(value: Any, names: Sequence[str], parts: Sequence[Any]) -> Any:
    made = copy.copy(value)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(made, name, part)  # a frozen one allows no other way
    return made
