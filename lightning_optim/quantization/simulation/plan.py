"""Plan: what recorded forward passes tell about the operators of a network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

from torch import Tensor

from lightning_optim.quantization.functional import value_range
from lightning_optim.quantization.simulation.operators import INTEGER_ROLES, WEIGHTED_ROLES, Role
from lightning_optim.quantization.simulation.sentinels import sentinel_bound
from lightning_optim.surgery.torch_private import FakeTensor

BEFORE_SOFTMAX = "what a softmax alone reads may be masked"
"""Why a sum is computed in floating point: beside the huge numbers of a mask, one scale rounds all others to zero."""

MASKED = "it adds a mask's huge numbers"
"""Why a sum, or a concatenation, that was seen to hold such numbers is computed in floating point."""

OVER_TOKENS = "it does not normalize the outputs of the layer before it"
"""Why a batch norm behind a linear layer is not folded into it: of ``[B, T, C]``, it normalizes T."""

_SUMS = frozenset({Role.ADD, Role.CONCATENATE, Role.POOL})

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
    """Record of what the forward passes of one batch show that a plan does not know.

    Args:
        known: The plan.
        histories: Key of an activation -> what stands for the operators that it comes from, as it was seen first.

    Attributes:
        varied: Keys of activations that have come about in another way.
        operators: Key -> operator, and the key of the one before it; in the order of the passes.
        readers: Key of an operator -> keys of those that read its output.
        uses: Key of an activation -> keys of the operators that read it quantized.
        sentinels: Keys of activations that hold sentinels.
        sources: Those of the plan and new ones, as ``OperatorNames`` takes them.
    """

    known: Plan
    histories: dict[str, int] = field(default_factory=dict)
    varied: set[str] = field(default_factory=set)
    operators: dict[str, tuple[Operator, str]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    uses: dict[str, set[str]] = field(default_factory=dict)
    sentinels: set[str] = field(default_factory=set)
    sources: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.sources = {name: [*sources] for name, sources in self.known.sources.items()}

    def add(self, key: str, operator: Operator, after: str = "") -> None:
        """Note that an operator ran that is new, behind another one; what is said of it last holds."""
        _, after = self.operators.get(key, (operator, after))
        self.operators[key] = operator, after

    def count(self, key: str, macs: int) -> None:
        """Note how many multiply-accumulates an operator took, if it is one that was noted."""
        if macs and key in self.operators:
            operator, after = self.operators[key]
            self.operators[key] = replace(operator, macs=macs), after

    def read(self, origin: str, reader: str) -> None:
        """Note that ``reader`` took the output of ``origin``."""
        if reader not in self.known.readers.get(origin, ()):
            self.readers.setdefault(origin, set()).add(reader)

    def use(self, key: str, reader: str) -> None:
        """Note that ``reader`` took an activation quantized."""
        if reader not in self.known.uses.get(key, ()):
            self.uses.setdefault(key, set()).add(reader)

    def look(self, key: str, tensor: Tensor) -> None:
        """Look for sentinels in an activation that is new."""
        if isinstance(tensor, FakeTensor) or not tensor.numel():
            return
        if sentinel_bound(tensor, ends=value_range(tensor)) is not None:
            self.sentinels.add(key)

    def follow(self, key: str, history: int, kind: str = "") -> None:
        """Note how an activation has come about, in a pass of some kind; those of two kinds are not compared."""
        if self.histories.setdefault(kind + key, history) != history and key not in self.known.varied:
            self.varied.add(key)

    @property
    def is_empty(self) -> bool:
        """Whether the plan knew everything."""
        is_known = self.sentinels <= self.known.sentinels and self.sources == self.known.sources
        return is_known and not (self.operators or self.readers or self.varied)

    def state_dict(self) -> dict[str, Any]:
        """Return what is new, as primitives."""
        operators = [[key, after, *_row(operator)] for key, (operator, after) in self.operators.items()]
        readers = {key: sorted(readers) for key, readers in self.readers.items()}
        uses = {key: sorted(readers) for key, readers in self.uses.items()}
        found = {"sources": self.sources, "varied": sorted(self.varied), "sentinels": sorted(self.sentinels)}
        return {"operators": operators, "readers": readers, "uses": uses, **found}


def _row(operator: Operator) -> tuple[str, str, str, str, int]:
    return operator.path, operator.name, operator.role.value, operator.note, operator.macs


def _operator(row: Iterable[Any]) -> Operator:
    path, name, role, note, macs = row
    return Operator(path, name, Role(role), note, macs)


@final
@dataclass(frozen=True)
class Plan:
    """Plan: what the simulation knows ahead of a forward pass. It grows when a pass shows more.

    Args:
        recorded: Key -> operator, in the order of the forward pass.
        readers: Key of an operator -> keys of those that read its output.
        foldable: Names of the modules that are batch norms with running statistics.
        sources: Those of modules that are called several times, as ``OperatorNames`` takes them.
        varied: Keys of activations that come about in several ways, since operators before them are skipped at times.
        uses: Key of an activation -> keys of the operators that read it quantized.
        sentinels: Keys of activations that hold sentinels.

    Example:
        >>> record = Record(Plan())
        >>> record.add("conv:conv2d", Operator("conv", "conv2d", Role.CONVOLUTION))
        >>> record.add("act:relu", Operator("act", "relu", Role.RELU), after="conv:conv2d")
        >>> record.read("conv:conv2d", "act:relu")
        >>> record.read("act:relu", "output")
        >>> plan = Plan().grown([record.state_dict()])
        >>> sorted(plan.rounded)
        ['act:relu']
    """

    recorded: Mapping[str, Operator] = field(default_factory=dict)
    readers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    foldable: frozenset[str] = frozenset()
    sources: Mapping[str, list[str]] = field(default_factory=dict)
    varied: frozenset[str] = frozenset()
    uses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    sentinels: frozenset[str] = frozenset()

    @cached_property
    def operators(self) -> dict[str, Operator]:
        """Key -> operator, in the order of the forward pass."""
        notes = {key: self._why_masked(key, operator) for key, operator in self.recorded.items()}
        return {
            key: replace(operator, note=notes[key]) if notes[key] else operator
            for key, operator in self.recorded.items()
        }

    def _why_masked(self, key: str, operator: Operator) -> str:
        if not operator.is_integer or operator.role not in _SUMS:
            return ""
        if operator.role is Role.ADD and self._goes_to_softmax(key):
            return BEFORE_SOFTMAX
        return MASKED if key in self.sentinels else ""

    @cached_property
    def norms(self) -> dict[str, str]:
        """Key of a convolution or linear layer -> name of the batch norm that alone reads it."""
        norms = {}
        for key, operator in self.recorded.items():
            reader = self._only_reader(key)
            is_layer = operator.role in WEIGHTED_ROLES and operator.is_integer
            if not is_layer or reader is None or reader.note == OVER_TOKENS:
                continue
            if reader.role is Role.NORM and reader.path in self.foldable:
                norms[key] = reader.path
        return norms

    @cached_property
    def shared(self) -> frozenset[str]:
        """Keys of the operators whose output several others read; a ReLU among the readers can't be absorbed."""
        return frozenset(key for key, readers in self.readers.items() if len(readers) > 1)

    @cached_property
    def rounded(self) -> frozenset[str]:
        """Keys of the operators whose very output is rounded: not that of a ReLU or a batch norm which they absorb."""
        return frozenset(key for key in self.readers if not self._is_absorbed(key))

    def _only_reader(self, key: str) -> Operator | None:
        readers = self.readers.get(key, ())
        return self.recorded.get(next(iter(readers))) if len(readers) == 1 else None

    def _is_absorbed(self, key: str) -> bool:
        reader = self._only_reader(key)
        return reader is not None and (
            (reader.role is Role.RELU and not reader.note) or self.norms.get(key) == reader.path
        )

    def _goes_to_softmax(self, key: str) -> bool:
        readers = {reader: self.recorded.get(reader) for reader in self.readers.get(key, ())}
        return bool(readers) and all(
            operator is not None
            and (operator.name == "softmax" or (operator.role is Role.MOVE and self._goes_to_softmax(reader)))
            for reader, operator in readers.items()
        )

    def why_masked(self, key: str) -> str:
        """Return why a sum stays in floating point: its output goes to a softmax alone, or held sentinels."""
        note = self.operators[key].note if key in self.operators else ""
        return note if note in (BEFORE_SOFTMAX, MASKED) else ""

    @cached_property
    def masked(self) -> frozenset[str]:
        """Keys of the operators that stay in floating point because they held sentinels."""
        return frozenset(key for key, operator in self.operators.items() if operator.note == MASKED)

    @cached_property
    def sums(self) -> frozenset[str]:
        """Keys of the operators in integers that stay in floating point once they hold sentinels."""
        return frozenset(key for key, each in self.operators.items() if each.is_integer and each.role in _SUMS)

    @cached_property
    def summands(self) -> frozenset[str]:
        """Keys of the activations that no integer operator puts out, and only sums read."""
        integers, sums = {key for key, each in self.operators.items() if each.is_integer}, self.sums | self.masked
        return frozenset(key for key, readers in self.uses.items() if key not in integers and readers <= sums)

    def reached_sums(self, keys: Collection[str]) -> frozenset[str]:
        """Return the sums that some activations reach through sums alone, those that put them out among them.

        While these sums round to a range without sentinels, they clip those that they read, so that none can be seen
        behind the first.
        """
        found = frozenset(keys)
        while more := found.union(*(self.uses.get(key, frozenset()) & self.sums for key in found)) - found:
            found |= more
        return found & self.sums

    def grown(self, records: Iterable[Mapping[str, Any]], foldable: frozenset[str] | None = None) -> Plan:
        """Return the plan with what passes have shown, perhaps on several processes.

        Where two processes have numbered the calls of a module unlike, only the numbers of both are kept, and the next
        batch shows the rest.

        Args:
            records: What ``Record.state_dict`` returned, of each process.
            foldable: Names of the modules that are batch norms with running statistics; ``None`` if that is known.
        """
        records = list(records)
        foldable = self.foldable if foldable is None else foldable
        sources, agree = _united([record["sources"] for record in records])
        varied = self.varied.union(*(record["varied"] for record in records))
        if not agree:
            return replace(self, foldable=foldable, sources=sources, varied=varied)
        sentinels = self.sentinels.union(*(record["sentinels"] for record in records))
        operators, readers = [*self.recorded.items()], {key: {*known} for key, known in self.readers.items()}
        uses = {key: {*known} for key, known in self.uses.items()}
        for record in records:
            _insert(operators, record["operators"])
            for key, more in record["readers"].items():
                readers.setdefault(key, set()).update(more)
            for key, more in record["uses"].items():
                uses.setdefault(key, set()).update(more)
        read, used = ({key: frozenset(known) for key, known in each.items()} for each in (readers, uses))
        return Plan(dict(operators), read, foldable, sources, varied, used, sentinels)

    def outdated(self, grown: Plan) -> tuple[str, ...]:
        """Return whose output's range is another one, now that the plan has grown.

        That of a convolution was the range behind its ReLU or batch norm, until somebody else read it as well; and of
        a module's calls, that of all of them, until there were several in one pass.
        """
        repeated = tuple(f"{name}{end}" for name in grown.sources.keys() - self.sources.keys() for end in ":.")
        read_apart = [key for key in self.readers if self._is_absorbed(key) and not grown._is_absorbed(key)]
        masked = grown.masked - self.masked
        return (*read_apart, *sorted(masked), *(key for key in self.recorded if repeated and key.startswith(repeated)))

    def state_dict(self) -> dict[str, Any]:
        """Return the plan as primitives."""
        return {
            "operators": [[key, *_row(operator)] for key, operator in self.recorded.items()],
            "readers": {key: sorted(readers) for key, readers in self.readers.items()},
            "foldable": sorted(self.foldable),
            "sources": {name: [*sources] for name, sources in self.sources.items()},
            "varied": sorted(self.varied),
            "uses": {key: sorted(readers) for key, readers in self.uses.items()},
            "sentinels": sorted(self.sentinels),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from ``state_dict``."""
        operators = {key: _operator(row) for key, *row in state["operators"]}
        readers = {key: frozenset(readers) for key, readers in state["readers"].items()}
        uses = {key: frozenset(readers) for key, readers in state["uses"].items()}
        foldable, varied, sentinels = (frozenset(state[name]) for name in ("foldable", "varied", "sentinels"))
        return cls(operators, readers, foldable, state["sources"], varied, uses, sentinels)


def _insert(operators: list[tuple[str, Operator]], rows: Iterable[Sequence[Any]]) -> None:
    """Insert operators behind those that they followed, unless they are known."""
    places = {key: place for place, (key, _) in enumerate(operators)}
    for key, after, *row in rows:
        if key in places:
            continue
        place = places.get(after, -1) + 1
        operators.insert(place, (key, _operator(row)))
        places = {key: place for place, (key, _) in enumerate(operators)} if place < len(places) else places
        places[key] = place


def _united(each: list[Mapping[str, list[str]]]) -> tuple[dict[str, list[str]], bool]:
    """Unite the sources of calls of several processes, and tell whether all have numbered them alike."""
    united: dict[str, list[str]] = {}
    agree = True
    for sources in each:
        for name, mine in sources.items():
            known = united.setdefault(name, [])
            agree = agree and known[: len(mine)] == mine[: len(known)]
            known += [source for source in mine if source not in known]
    return united, agree
