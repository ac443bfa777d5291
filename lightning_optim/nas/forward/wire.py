"""Wire: what earlier modules have put out goes into a module in place of its own input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

OWN = 0
"""Index of the module's own input; those of the sources follow."""


@final
class InputAdapters(nn.Module):
    """Adapters of a module's inputs, one for each source, by the source's name with ``/`` for ``.``.

    Called, it hands its input on, since the module may be an ``nn.Sequential``, which calls whatever lies in it.
    """

    def __init__(self, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for source, adapter in adapters.items():
            self.add_module(source.replace(".", "/"), adapter)

    def update(self, others: InputAdapters) -> None:
        """Take in the adapters of further sources."""
        for source, adapter in others.named_children():
            self.add_module(source, adapter)

    def of(self, source: str) -> nn.Module:
        """The adapter of a source."""
        return self.get_submodule(source.replace(".", "/"))

    @override
    def forward(self, value: Any) -> Any:
        return value


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """Argument of a forward: where it stands among the positional ones, and its name.

    Args:
        position: Its place; ``None`` if it is given by name alone.
        name: Its name; ``None`` if the forward gives it none.
    """

    position: int | None
    name: str | None

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a call gives for it; ``None`` where it gives nothing."""
        if self.name is not None and self.name in kwargs:
            return kwargs[self.name]
        return args[self.position] if self.position is not None and self.position < len(args) else None

    def replaced(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], value: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with another value for this one."""
        if self.name is not None and self.name in kwargs:
            return tuple(args), {**kwargs, self.name: value}
        assert self.position is not None, "what is given by name alone is among the keywords"
        return (*args[: self.position], value, *args[self.position + 1 :]), dict(kwargs)


@final
class Wire:
    """Wire: gives one module the outputs of earlier ones, in each call of a module that holds them all.

    Its bound methods are hooks, and it holds names and plain values: a copy of the model, or an unpickled one, has its
    own. An output is kept from when its source has returned until the call ends, and only if it is taken. Outside of
    any call, where code runs the parts by themselves (a training step that does, a backward that runs a checkpointed
    part once more), it is kept until the target has taken it.

    Args:
        target: Name of the module that is given them.
        sources: Names of the modules that they come from.
        argument: What they replace.
        adapters: Bring each output to the shape of the own input.
        takes: Indices of what is taken, ascending: ``OWN``, and the sources from 1 on. Several are summed; none gives
            zeros.
    """

    def __init__(
        self, target: str, sources: Sequence[str], argument: Argument, adapters: InputAdapters, takes: Sequence[int]
    ) -> None:
        self.target, self.sources, self.argument, self.adapters = target, tuple(sources), argument, adapters
        self.takes = tuple(takes)
        self._calls: list[dict[int, Tensor]] = []  # one of these inside the other, where a network calls itself
        self._outside: dict[int, Tensor] = {}

    def attach(self, scope: nn.Module, sources: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Set hooks on the module that holds all, and on the sources.

        Returns:
            What takes them off.
        """
        handles = [scope.register_forward_pre_hook(self.begin), scope.register_forward_hook(self.end, always_call=True)]
        # Hooks run in order, so a source that is the last to return within the scope is recorded before the end.
        return handles + [
            module.register_forward_hook(partial(self.record, index)) for index, module in enumerate(sources, 1)
        ]

    def begin(self, *_: Any) -> None:
        """A call of the module that holds all begins."""
        self._outside.clear()
        self._calls.append({})

    def end(self, *_: Any) -> None:
        """A call of the module that holds all ends, and what was recorded in it is let go."""
        if self._calls:  # a hook of somebody else's may have raised before this one's turn to begin
            self._calls.pop()

    def record(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """A source has returned."""
        if index in self.takes:
            self._recorded[index] = output

    def rewire(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The target is called; return the arguments that it is called with."""
        if self.takes == (OWN,):
            return args, kwargs
        own = self.argument.read(args, kwargs)
        chosen = self.combine(self.takes, own)
        self.finish()
        return self.argument.replaced(args, kwargs, chosen)

    def combine(self, takes: Sequence[int], own: Tensor) -> Tensor:
        """The sum of some inputs, or zeros."""
        inputs = [own if index == OWN else self._taken(index) for index in takes]
        return reduce(add, inputs) if inputs else torch.zeros_like(own)

    def finish(self) -> None:
        """The target has what it needs."""
        self._outside.clear()

    @property
    def _recorded(self) -> dict[int, Tensor]:
        return self._calls[-1] if self._calls else self._outside

    def _taken(self, index: int) -> Tensor:
        source = self.sources[index - 1]
        if index not in self._recorded:
            raise RuntimeError(
                f"{self.target!r} takes the output of {source!r}, which has not run before it in the same pass through "
                "the network; is one of them called alone, or checkpointed without the other?"
            )
        adapted: Tensor = self.adapters.of(source)(self._recorded[index])
        return adapted
