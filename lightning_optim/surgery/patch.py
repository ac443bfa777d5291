"""Patches of methods, on single objects, that can be undone and do not leak into copies."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from types import MethodType
from typing import Any, final

Wrapper = Callable[..., Any]


def unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Follow every ``__wrapped__`` to the function that the user wrote.

    Lightning reads the signature of ``training_step`` on each batch, and follows one level only.
    """
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _is_plain_method(function: Any, owner: object, name: str) -> bool:
    is_own = isinstance(function, MethodType) and function.__self__ is owner
    return is_own and function.__func__ is getattr(type(owner), name, None)


@final
class PatchedMethod:
    """Stand-in for ``owner.name`` that calls ``wrapper(original, *args, **kwargs)``.

    A deep copy or an unpickled owner gets back what it had before any patch: a closure would keep calling the
    first owner, and a whole callback would be copied with it. A pickle names nothing of this package.
    """

    def __init__(self, owner: object, name: str, original: Callable[..., Any], wrapper: Wrapper) -> None:
        self.__wrapped__ = unwrap(original)
        self._owner, self._name, self._original, self._wrapper = owner, name, original, wrapper

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapper with the original method."""
        return self._wrapper(self._original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        method = self._unpatched
        if _is_plain_method(method, self._owner, self._name):
            return MethodType(method.__func__, memo.get(id(self._owner), self._owner))
        own: Callable[..., Any] = copy.deepcopy(method, memo)  # which the user has set on the instance
        return own

    def __reduce__(self) -> tuple[Any, ...]:
        method = self._unpatched
        if _is_plain_method(method, self._owner, self._name):
            return getattr, (self._owner, self._name)  # of an owner that is being unpickled, the class alone answers
        return operator.getitem, ([method], 0)

    @property
    def _unpatched(self) -> Any:
        method = self._original
        while isinstance(method, PatchedMethod):
            method = method._original
        return method


@final
class Patches:
    """Patches that one callback has set; ``undo`` takes them off in reverse order.

    A copy or a pickle has set none: what is patched is the original's.

    Example:
        >>> class Greeter:
        ...     def greet(self, name):
        ...         return f"hello {name}"
        >>> greeter, patches = Greeter(), Patches()
        >>> patches.wrap(greeter, "greet", lambda original, name: original(name).upper())
        >>> greeter.greet("Ada")
        'HELLO ADA'
        >>> patches.undo()
        >>> greeter.greet("Ada")
        'hello Ada'
    """

    def __init__(self) -> None:
        self._set: list[tuple[object, str, PatchedMethod]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Patches, ()

    def wrap(self, owner: object, name: str, wrapper: Wrapper) -> None:
        """Call ``wrapper(original, *args, **kwargs)`` whenever ``owner.name`` is called.

        Args:
            owner: The instance; its class is not touched.
            name: Name of one of its methods.
            wrapper: Receives the original bound method and the call's arguments.
        """
        patched = PatchedMethod(owner, name, getattr(owner, name), wrapper)
        object.__setattr__(owner, name, patched)
        self._set.append((owner, name, patched))

    def wrap_innermost(self, owner: object, name: str, wrapper: Wrapper) -> None:
        """As ``wrap``, but below every other patch that stands there, so that it alone calls the user's own method.

        Args:
            owner: The instance; its class is not touched.
            name: Name of one of its methods.
            wrapper: Receives the original bound method and the call's arguments.
        """
        outer = vars(owner).get(name)
        if not isinstance(outer, PatchedMethod):
            self.wrap(owner, name, wrapper)
            return
        while isinstance(outer._original, PatchedMethod):
            outer = outer._original
        patched = PatchedMethod(owner, name, outer._original, wrapper)
        outer._original = patched
        self._set.append((owner, name, patched))

    def undo(self) -> None:
        """Take every patch off; a second call does nothing."""
        while self._set:
            self._take_off(*self._set.pop())

    @staticmethod
    def _take_off(owner: object, name: str, patched: PatchedMethod) -> None:
        outer = vars(owner).get(name)
        if outer is patched:
            # What lies below now, not what lay there once: a patch below may have been taken off first.
            if _is_plain_method(patched._original, owner, name):
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, patched._original)
            return
        # Another patch lies above ours: it stays, and what it calls is handed on.
        while isinstance(outer, PatchedMethod):
            if outer._original is patched:
                outer._original = patched._original
                return
            outer = outer._original
