"""Plan: what one recorded forward pass tells about the operators of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from lightning_optim.quantization.simulation.operators import INTEGER_ROLES, WEIGHTED_ROLES, Role

BEFORE_SOFTMAX = "what a softmax alone reads may be masked"
"""Why a sum is computed in floating point: beside the huge numbers of a mask, one scale rounds all others to zero."""

UNROUNDED = "its activations are not quantized"
"""Why an operator computes in floating point beside quantized weights."""


@final
@dataclass(frozen=True, slots=True)
class Operator:
    """Operator of a network, as a recorded forward pass shows it.

    Args:
        path: Name of the module that it ran in.
        name: Name of the torch function.
        role: What it is to a quantized network.
        note: Why it computes in floating point; empty if it does not.
        macs: Multiply-accumulates of the recorded call.
    """

    path: str
    name: str
    role: Role
    note: str = ""
    macs: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether it is to run in integers."""
        return self.role in INTEGER_ROLES and not self.note


@final
@dataclass(slots=True)
class Record:
    """Record of the operators, and of who reads whom, in the forward passes of one batch."""

    operators: dict[str, Operator] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)

    def add(self, key: str, operator: Operator) -> None:
        """Note that an operator ran."""
        self.operators[key] = operator

    def count(self, key: str, macs: int) -> None:
        """Note how many multiply-accumulates an operator took, if it is one that was noted."""
        if macs and key in self.operators:
            self.operators[key] = replace(self.operators[key], macs=macs)

    def read(self, origin: str, reader: str) -> None:
        """Note that ``reader`` took the output of ``origin``."""
        self.readers.setdefault(origin, set()).add(reader)

    def plan(self, foldable: frozenset[str]) -> Plan:
        """Return the plan that follows from what was recorded.

        Args:
            foldable: Names of the modules that are batch norms with running statistics.
        """
        norms = {}
        for key, operator in self.operators.items():
            readers = self.readers.get(key, set())
            if operator.role not in WEIGHTED_ROLES or not operator.is_integer or len(readers) != 1:
                continue
            reader = self.operators.get(next(iter(readers)))
            if reader is not None and reader.role is Role.NORM and reader.path in foldable:
                norms[key] = reader.path
        shared = frozenset(key for key, readers in self.readers.items() if len(readers) > 1)
        operators = {
            key: replace(operator, note=BEFORE_SOFTMAX)
            if operator.role is Role.ADD and operator.is_integer and self._goes_to_softmax(key)
            else operator
            for key, operator in self.operators.items()
        }
        return Plan(operators=operators, norms=norms, shared=shared)

    def _goes_to_softmax(self, key: str) -> bool:
        readers = {reader: self.operators.get(reader) for reader in self.readers.get(key, ())}
        return bool(readers) and all(
            operator is not None
            and (operator.name == "softmax" or (operator.role is Role.MOVE and self._goes_to_softmax(reader)))
            for reader, operator in readers.items()
        )


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """Plan: what the simulation knows ahead of a forward pass.

    Args:
        operators: Key -> operator, in the order of the forward pass.
        norms: Key of a convolution or linear layer -> name of the batch norm that alone reads it.
        shared: Keys of the operators whose output several others read; a ReLU among the readers can't be
            absorbed.
    """

    operators: Mapping[str, Operator] = field(default_factory=dict)
    norms: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()

    def may_be_masked(self, key: str) -> bool:
        """Whether an operator's output goes to a softmax alone."""
        return key in self.operators and self.operators[key].note == BEFORE_SOFTMAX

    def state_dict(self) -> dict[str, Any]:
        """Return the plan as primitives."""
        rows = [[key, op.path, op.name, op.role.value, op.note, op.macs] for key, op in self.operators.items()]
        return {"operators": rows, "norms": dict(self.norms), "shared": sorted(self.shared)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from ``state_dict``."""
        operators = {
            key: Operator(path, name, Role(role), note, macs)
            for key, path, name, role, note, macs in state["operators"]
        }
        return cls(operators=operators, norms=dict(state["norms"]), shared=frozenset(state["shared"]))
