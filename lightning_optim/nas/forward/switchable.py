"""Switchable forward: a forward method that obeys decisions, set on one instance of the user's modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Set
from types import MethodType
from typing import Any

from torch import nn
from typing_extensions import override

from lightning_optim.search.decision import Condition

_FORWARDS = "_nas_forwards"


class SwitchableForward(ABC):
    """Switchable forward: stands in for ``owner.forward`` and does what the active architecture says.

    It holds plain attributes and its owner, no closure: a deep copy or an unpickled owner has its own,
    which obeys too.

    Args:
        owner: The module; its class, its parameters and their names are left as they are.
    """

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self._inner: Callable[..., Any] | None = None

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the owner as the active architecture has it."""

    @property
    @abstractmethod
    def follows(self) -> Set[str]:
        """Names of the decisions that concern this module."""

    @property
    @abstractmethod
    def runs_as_built(self) -> bool:
        """Whether the active options run the owner as the user has built it."""

    @abstractmethod
    def activate(self, architecture: Mapping[str, int]) -> None:
        """Take over the options of the decisions that concern this module, and ignore the others."""

    @abstractmethod
    def forget(self, decisions: Set[str]) -> None:
        """Stop following these decisions."""

    @abstractmethod
    def extracted(self) -> nn.Module | None:
        """The plain module that takes the owner's place in an extracted model.

        It is the owner where that only shrinks, and ``None`` where the container of the owner does without it.
        """

    @abstractmethod
    def superpose(self) -> None:
        """Run every option at once, until the next ``activate``: one graph then shows what each of them ties."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The forward below this one, whose signature is the true one."""
        return MethodType(type(self.owner).forward, self.owner) if self._inner is None else self._inner

    def attach(self) -> None:
        """Take the place of the owner's forward."""
        self._inner = vars(self.owner).get("forward")
        vars(self.owner).setdefault(_FORWARDS, []).append(self)
        vars(self.owner)["forward"] = self

    def detach(self) -> None:
        """Give the owner its forward back; what was set above it goes too."""
        vars(self.owner).pop("forward", None)
        if self._inner is not None:
            vars(self.owner)["forward"] = self._inner


class SingleDecisionForward(SwitchableForward):
    """Switchable forward of one decision.

    Args:
        owner: The module.
        decision: Name of the decision.
        option: Index of the option with which it begins.
    """

    def __init__(self, owner: nn.Module, decision: str, option: int) -> None:
        super().__init__(owner)
        self._decision, self._option = decision, option

    @property
    @override
    def follows(self) -> Set[str]:
        return {self._decision}

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self._option = architecture.get(self._decision, self._option)

    @override
    def forget(self, decisions: Set[str]) -> None:
        assert self._decision not in decisions, "it has one decision and is detached with it"


class GatingForward(SwitchableForward):
    """Gating forward: with some options, modules do not run, and what there is to decide in them changes nothing."""

    @abstractmethod
    def gates(self) -> list[tuple[Set[nn.Module], Condition]]:
        """Modules, each set with the condition under which it runs; those that always run are left out."""


def switchable_forwards(root: nn.Module) -> list[SwitchableForward]:
    """Every switchable forward in ``root``, in the model's order, inner ones first."""
    return [forward for module in root.modules() for forward in vars(module).get(_FORWARDS, ())]


def activate(root: nn.Module, architecture: Mapping[str, int]) -> None:
    """Make ``root``, a supernet or a copy of one, run the path of ``architecture``."""
    for forward in switchable_forwards(root):
        forward.activate(architecture)


def strip(root: nn.Module, keep: Collection[SwitchableForward] = (), forget: Set[str] = frozenset()) -> None:
    """Take switchable forwards off, and with them what they had added.

    Args:
        root: The model.
        keep: Switchable forwards that stay.
        forget: Decisions that those no longer follow.
    """
    for module in list(root.modules()):
        forwards = vars(module).pop(_FORWARDS, [])
        stay = [forward for forward in forwards if forward in keep]
        for forward in reversed(forwards):
            if forward in stay:
                forward.forget(forget)
            else:
                forward.detach()
        if stay:
            vars(module)[_FORWARDS] = stay


def put_in_place(root: nn.Module, replaced: Mapping[nn.Module, nn.Module | None]) -> None:
    """Put other modules in the places of some, wherever they are registered; ``None`` takes a module out."""
    for parent in [*root.modules()]:
        children: dict[str, nn.Module | None] = vars(parent)["_modules"]
        for name, child in [*children.items()]:
            if child is None or child not in replaced:
                continue
            children[name] = replaced[child]
            if children[name] is None:
                del children[name]
