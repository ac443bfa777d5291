"""Call order of a network: what has run, and has put out what, when a module is called."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.nas.space.base import Site
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.torch_private import in_place_version

Call = tuple[str, int]
"""A module's name, and which of all calls it is."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Arrival at a module: its first call, and what had returned by then.

    Args:
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        within: The calls in progress around it, the outermost first.
        outputs: What each watched module had put out last, of those that had returned.
        around: The calls around that pass of theirs.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    within: tuple[Call, ...]
    outputs: Mapping[str, Any]
    around: Mapping[str, tuple[Call, ...]]

    def scope_of(self, sources: Collection[str]) -> str:
        """Name of the innermost module in one call of which this module and the sources run."""
        return next(call for call in reversed(self.within) if all(call in self.around[source] for source in sources))[0]


@final
class CallOrder:
    """Call order of modules, watched on a copy of the network that runs the example.

    Args:
        site: The model and the example.
        targets: Names of the modules whose first call is noted.
        sources: Names of the modules whose output is noted.

    Raises:
        TargetError: If one of them does not lie in the network.
    """

    def __init__(self, site: Site, targets: Collection[str], sources: Collection[str]) -> None:
        network = eval_copy(submodule(site.root, site.network))
        self.arrivals: dict[str, Arrival] = {}
        self.outputs: dict[str, Any] = {}
        self.changes_input: set[str] = set()
        self._around: dict[str, tuple[Call, ...]] = {}
        self._progress: list[Call] = []
        self._versions: dict[str, list[int]] = {}
        self._count = 0
        for name in sources:
            submodule(network, site.inner_name(name)).register_forward_hook(partial(self._returned, name))
        for inner, module in network.named_modules():
            name = site.outer_name(inner) if inner else site.network
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave)
        for name in targets:
            inside = submodule(network, site.inner_name(name))
            inside.register_forward_pre_hook(partial(self._called, name), with_kwargs=True)
            inside.register_forward_hook(partial(self._compared, name), with_kwargs=True)
        with torch.no_grad():
            network(*site.args, **site.kwargs)

    def _enter(self, name: str, *_: Any) -> None:
        self._count += 1
        self._progress.append((name, self._count))

    def _leave(self, *_: Any) -> None:
        self._progress.pop()

    def _called(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = Arrival(
            args=args,
            kwargs=kwargs,
            within=tuple(self._progress),
            outputs=dict(self.outputs),
            around=dict(self._around),
        )
        self.arrivals.setdefault(name, first)
        self._versions[name] = _versions(args, kwargs)

    def _compared(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._versions[name] != _versions(args, kwargs):
            self.changes_input.add(name)

    def _returned(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.outputs[name], self._around[name] = output, tuple(self._progress)


def _versions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    return [in_place_version(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
