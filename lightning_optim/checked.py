"""Types of settings, checked where an object is built: what was needed, what came, what there is."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_PLAIN = {bool: "True or False", int: "an integer", float: "a number", str: "a string", NoneType: "None"}


def checked(kind: type[T]) -> type[T]:
    """Check the keywords of a class by their annotations, before the class reads any of them.

    It stands above ``@dataclass``, or on a class with an ``__init__`` of its own. An annotation that cannot be
    resolved, or that says nothing of a value, accepts all.

    Args:
        kind: The class; changed in place.

    Returns:
        The same class. It raises a TypeError for a value of another type, and a ValueError for a word that is none of a
        ``Literal``.

    Example:
        >>> from dataclasses import dataclass
        >>> @checked
        ... @dataclass(kw_only=True)
        ... class Step:
        ...     size: float
        >>> Step(size="high")
        Traceback (most recent call last):
        TypeError: Step: size must be a number, got the string 'high'
    """
    _forget_first(kind)
    build: Any = kind.__init__

    @functools.wraps(build)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:  # noqa: N807  # it takes the place of one
        hints = _hints(kind)
        for keyword, value in kwargs.items():
            if keyword in hints:
                check_type(f"{kind.__name__}: {keyword}", value, hints[keyword])
        build(self, *args, **kwargs)

    setattr(kind, "__init__", __init__)  # noqa: B010  # the wrapper of the very same method
    return kind


def _forget_first(kind: type) -> None:
    """Let go of the class that ``dataclass(slots=True)`` was given, and in whose place it has built this one.

    Methods go on to name the first class; ``__setattr__`` of a frozen one does. So it would live on, among the
    subclasses of its base and under the same name, and a command line could not tell the two apart. Until its memory is
    collected it stays there all the same, so its name is taken from it.
    """
    name = (kind.__module__, kind.__qualname__)
    for function in filter(inspect.isfunction, vars(kind).values()):
        for cell in function.__closure__ or ():
            inner = cell.cell_contents
            if isinstance(inner, type) and (inner.__module__, inner.__qualname__) == name:
                cell.cell_contents = kind
    siblings: set[type] = set().union(*(base.__subclasses__() for base in kind.__bases__ if base is not object))
    for first in siblings - {kind}:
        if (first.__module__, first.__qualname__) == name:
            first.__name__ = first.__qualname__ = f"_First{kind.__name__}"


def check_type(what: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of an annotated type.

    Args:
        what: Names it in the message.
        value: The value.
        hint: The annotation.

    Raises:
        TypeError: Saying what was needed, what came and what there is.
        ValueError: If it is a word, and none of a ``Literal``.
    """
    if not _is_of(value, hint):
        raise _refusal(what, value, hint)


def by_key(what: str, value: Any, kind: type[T], noun: str) -> dict[str, T]:
    """Read one object or several by key; the key of one is its class name in snake case.

    Args:
        what: Names the setting in the message, in the plural.
        value: The object, or a mapping.
        kind: Class of the objects.
        noun: Names one of them in the message.

    Raises:
        TypeError: If a value is of another class.
        ValueError: If there is none.

    Example:
        >>> class SlowRMSNorm: ...
        >>> list(by_key("norms", SlowRMSNorm(), SlowRMSNorm, "norm"))
        ['slow_rms_norm']
    """
    if isinstance(value, kind):
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(value).__name__)
        return {words.lower(): value}
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a {noun} or {what} by key, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{what} must hold at least one {noun}, got none")
    for key, each in value.items():
        if not isinstance(each, kind):
            raise TypeError(
                f"{what}[{key!r}] must be a {noun}, got {type(each).__name__}: "
                "a Hydra node needs its _target_, and _convert_: all on the callback"
            )
    return {str(key): each for key, each in value.items()}


def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind if dataclasses.is_dataclass(kind) else vars(kind)["__init__"])
    except NameError:  # a name that is there for type checkers alone
        return {}


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as the annotation can be judged."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in inner)
    if isinstance(origin, type) and issubclass(origin, (Mapping, Sequence)):
        return _is_collection_of(value, origin, inner[-1] if issubclass(origin, Mapping) else inner[0])
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    try:
        return isinstance(value, origin or hint)
    except TypeError:  # Any, a type variable, a protocol
        return True


def _is_collection_of(value: Any, kind: type, hint: Any) -> bool:
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_is_of(each, hint) for each in value.values())
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and all(_is_of(each, hint) for each in value)


def _refusal(what: str, value: Any, hint: Any) -> Exception:
    kinds = list(_kinds(hint))
    for kind in kinds if isinstance(value, Mapping) else ():
        if get_origin(kind) is Mapping:
            inner = get_args(kind)[1]
            key = next(key for key, each in value.items() if not _is_of(each, inner))
            return _refusal(f"{what}[{key!r}]", value[key], inner)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    is_word = any(type(value) is type(word) for word in words)
    text = f"{what} must be {_all_wanted(hint)}, got {repr(value) if is_word else _got(value)}"
    options = [option for kind in kinds for option in _options(kind)]
    if advice := _advice(value, options):
        text = f"{text}; {advice}"
    return ValueError(text) if is_word else TypeError(text)


def _kinds(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, UnionType):
        for each in get_args(hint):
            yield from _kinds(each)
    else:
        yield hint


def _wanted(hint: Any) -> str:
    """An annotated type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        *first, last = map(repr, inner)
        return f"{', '.join(first)} or {last}" if first else last
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping by key, each entry {_all_wanted(inner[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each entry {_all_wanted(inner[0])}"
    if hint in _PLAIN:
        return _PLAIN[hint]
    if not _is_class(hint):
        return "a callable"
    return f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"


def _all_wanted(hint: Any) -> str:
    return " or ".join(dict.fromkeys(map(_wanted, _kinds(hint))))


def _got(value: Any) -> str:
    if isinstance(value, str):
        return f"the string {value!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _options(hint: Any) -> Iterator[type]:
    """Classes of ours that can stand where a value is wanted, from the front door of their package."""
    for each in get_args(hint):
        for kind in _kinds(each):
            yield from _options(kind)
    module = hint.__module__ if isinstance(hint, type) else ""
    if not module.startswith("lightning_optim."):
        return
    door = importlib.import_module(".".join(module.split(".")[:2]))
    for name in sorted(dir(door)):
        option = getattr(door, name)
        if _is_class(option) and issubclass(option, hint) and not inspect.isabstract(option):
            yield option


def _advice(value: Any, options: list[type]) -> str:
    """What to do, where a class of ours is wanted."""
    if not options:
        return ""
    calls = {option.__name__: f"{option.__name__}({_needed(option)})" for option in options}
    listed = f"there {'is' if len(calls) == 1 else 'are'} {', '.join(calls)}"
    if isinstance(value, Mapping):
        return f"{listed}; a node of a configuration needs its _target_, and _convert_: all on the callback"
    if isinstance(value, type):
        return f"give an object, {calls[value.__name__]}" if value.__name__ in calls else listed
    by_name = {name.lower(): name for name in calls}
    word = value.lower().replace("_", "") if isinstance(value, str) else ""
    near = difflib.get_close_matches(word, by_name, n=1, cutoff=0.6)
    return f"{listed}: did you mean {calls[by_name[near[0]]]}?" if near else listed


def _needed(option: type) -> str:
    """Keywords without which an option cannot be built."""
    parameters = inspect.signature(option).parameters.values()
    return ", ".join(f"{each.name}=..." for each in parameters if each.default is each.empty)


def _is_class(value: object) -> TypeGuard[type]:
    """Whether it is a class; in Python 3.10, aliases such as ``tuple[int, str]`` count as types too."""
    return isinstance(value, type) and get_origin(value) is None
