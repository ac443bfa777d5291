"""Base of all rules: how a rule is written and found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, final

import torch
from torch import fx

from lightning_optim.graph.labels import Axes, Axis, Labels
from lightning_optim.surgery.torch_private import OpOverload, arguments_of

Result = Axes | list[Axes]
"""Axes of the output, or of each output."""
Rule = Callable[["OperatorCall"], Result]
_Function = TypeVar("_Function", bound=Rule)

_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[_Function], _Function]:
    """Register a rule for ATen operators by name, without namespace and overload.

    A rule accounts for every label of every operand: it hands it on, unites it, or freezes it.
    """

    def register(function: _Function) -> _Function:
        _RULES.update(dict.fromkeys(operators, function))
        return function

    return register


@cache
def all_rules() -> dict[str, Rule]:
    """Return every rule by operator name; each file of this folder is imported once."""
    package = importlib.import_module("lightning_optim.graph.rules")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")
    return _RULES


def fixed(rank: int) -> Axes:
    """Return axes that cannot change their length."""
    return [None] * rank


@final
class OperatorCall:
    """Operator call: its operands by name, their labels, and what a rule may do to them."""

    def __init__(self, node: fx.Node, known: dict[fx.Node, Any], labels: Labels) -> None:
        self.node, self.labels, self._known = node, labels, known
        self.uses_statistic = False
        self._arguments = self._bind()

    def _bind(self) -> dict[str, Any]:
        target = self.node.target
        if not isinstance(target, OpOverload):
            return {str(position): value for position, value in enumerate(self.node.args)}
        bound: dict[str, Any] = {}
        for position, argument in enumerate(arguments_of(target)):
            default = argument.default_value if argument.has_default_value() else None
            given = self.node.args[position] if position < len(self.node.args) else default
            bound[argument.name] = self.node.kwargs.get(argument.name, given)
        return bound

    def __getitem__(self, name: str) -> Any:
        """Return the operand of that name in the operator's schema, its default if it was not given."""
        return self._arguments[name]

    def first(self) -> Any:
        """Return the first operand, whatever it is called."""
        return next(iter(self._arguments.values()))

    def get(self, *names: str) -> Any:
        """Return the operand that goes by one of these names, or ``None``."""
        return next((self._arguments[name] for name in names if name in self._arguments), None)

    def axes(self, operand: Any) -> Axes:
        """Return the labels of a tensor operand, a new list; ``[]`` for what is no tensor."""
        known = self._known.get(operand) if isinstance(operand, fx.Node) else None
        return list(known) if known is not None else []

    def shape(self, operand: Any) -> tuple[int, ...]:
        """Return the shape of a tensor operand; ``()`` for what is no tensor."""
        value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
        return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the output; ``()`` where there are several."""
        return self.shape(self.node)

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        """Shape of each output."""
        values = self.node.meta["val"]
        return [tuple(value.shape) if isinstance(value, torch.Tensor) else () for value in values]

    def join(self, *axes: Axis | None) -> Axis | None:
        """Make one of axes that meet position by position; one fixed axis fixes them all."""
        if any(axis is None for axis in axes):
            self.freeze(*axes)
            return None
        present = [axis for axis in axes if axis is not None]
        for other in present[1:]:
            self.labels.unite(present[0], other)
        return present[0]

    def freeze(self, *axes: Axis | None) -> None:
        """Forbid the removal of everything on these axes."""
        for axis in axes:
            self.labels.freeze(axis)

    def normalize(self, *axes: Axis | None) -> None:
        """Note that the operator takes a statistic over these axes."""
        for axis in axes:
            self.uses_statistic |= axis is not None
            self.labels.mark_normalized(axis)
