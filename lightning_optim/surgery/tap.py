"""Taps: forward hooks that record the inputs and outputs of modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_optim.errors import TapError
from lightning_optim.surgery.passes import is_repeating
from lightning_optim.surgery.torch_private import is_recomputing


@final
@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One forward pass of a tapped module: its positional and keyword arguments and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


_INERT: Callable[..., None] = nullcontext().__exit__
"""Takes any arguments and does nothing."""


@final
class _Hook:
    """Hook that becomes inert in a copy, so that no callback is copied with a model.

    What stands there in a copy or a pickle is of the standard library, so that nobody needs this package to load it.
    """

    def __init__(self, listener: Callable[..., Any]) -> None:
        self._listener = listener

    def __call__(self, module: nn.Module, *args: Any) -> Any:
        return self._listener(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _INERT

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


@final
class Taps:
    """Recorder of the calls of chosen modules, while it is open.

    Recording is off until ``open`` and ends with ``take``. A forward that runs once more in the backward (activation
    checkpointing) is not seen twice, nor a training step that runs once more while the recorder is open.

    Example:
        >>> import torch
        >>> layer, taps = nn.Linear(2, 1), Taps()
        >>> taps.attach({"head": layer})
        >>> taps.open()
        >>> _ = layer(torch.ones(3, 2))
        >>> len(taps.take()["head"])
        1
        >>> taps.remove()
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._names: tuple[str, ...] = ()
        self._calls: dict[str, list[ModuleCall]] = {}
        self._is_open = self._repeats = False

    @property
    def is_attached(self) -> bool:
        """Whether any module is tapped."""
        return bool(self._handles)

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Tap ``modules``, each under its name; never a root LightningModule, whose hooks fire twice under DDP."""
        self._names += tuple(modules)
        for name, module in modules.items():
            hook = _Hook(partial(self._record, name))
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def open(self) -> None:
        """Forget what was seen and start to record."""
        self._calls, self._is_open, self._repeats = {}, True, is_repeating()

    def close(self) -> None:
        """Stop recording and forget what was seen."""
        self._calls, self._is_open = {}, False

    def take(self, *, may_be_silent: bool | Collection[str] = False) -> dict[str, list[ModuleCall]]:
        """Stop recording and return the calls of every tap, in order.

        Args:
            may_be_silent: Whether a tap may have seen no call, or the names of those that may.

        Raises:
            TapError: If a tap saw no call that should have.
        """
        calls = self._calls
        self.close()
        excused = self._names if may_be_silent is True else may_be_silent or ()
        silent = [name for name in self._names if name not in calls and name not in excused]
        if silent:
            raise TapError(
                f"no forward pass went through {', '.join(map(repr, silent))} in this step: "
                "is the module skipped, replaced, or compiled before the tap was set? torch.compile takes over the "
                "graph of an earlier network of the same class, without the tap: call torch._dynamo.reset() before"
            )
        return calls

    def remove(self) -> None:
        """Take every tap off; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()
        self._names = ()
        self.close()

    def _record(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._is_open and self._repeats == is_repeating() and not is_recomputing():
            self._calls.setdefault(name, []).append(ModuleCall(args, kwargs, output))


@final
class Surroundings:
    """Contexts that are entered around each forward pass of chosen modules.

    Args:
        context: Makes the context around a pass of the module of that name; ``None`` for a pass that needs none.
    """

    def __init__(self, context: Callable[[str], AbstractContextManager[Any] | None]) -> None:
        self._context = context
        self._handles: list[RemovableHandle] = []
        self._entered: list[AbstractContextManager[Any]] = []

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Set hooks on ``modules``, each under its name."""
        for name, module in modules.items():
            self._handles.append(module.register_forward_pre_hook(_Hook(partial(self._enter, name))))
            self._handles.append(module.register_forward_hook(_Hook(self._leave), always_call=True))

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, name: str, args: tuple[Any, ...]) -> None:
        context = self._context(name) or nullcontext()
        context.__enter__()
        self._entered.append(context)

    def _leave(self, *_: Any) -> None:
        if self._entered:
            self._entered.pop().__exit__(None, None, None)


@final
class OutputChanges:
    """Changes of what chosen modules put out; every tap on them sees the changed output, whoever came first.

    Args:
        change: Receives the name of a module and what it has put out, and returns what goes on in its place.

    Example:
        >>> import torch
        >>> layer, changes = nn.Identity(), OutputChanges(lambda name, output: output + 1)
        >>> changes.attach({"layer": layer})
        >>> layer(torch.zeros(1))
        tensor([1.])
        >>> changes.remove()
        >>> layer(torch.zeros(1))
        tensor([0.])
    """

    def __init__(self, change: Callable[[str, Any], Any]) -> None:
        self._change = change
        self._handles: list[RemovableHandle] = []

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Set hooks on ``modules``, each under its name."""
        for name, module in modules.items():
            hook = _Hook(partial(self._changed, name))
            self._handles.append(module.register_forward_hook(hook, prepend=True))

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def _changed(self, name: str, args: tuple[Any, ...], output: Any) -> Any:
        return self._change(name, output)
