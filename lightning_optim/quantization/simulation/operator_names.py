"""Names of operators: each tells where it stands in its network, whatever else ran in the pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias, final

Counted: TypeAlias = tuple[dict[str, int], dict[str, str]]


@final
class ModuleCall:
    """Call of a module in a forward pass.

    Args:
        name: Plain name of the module, by which its caller has it.
        path: First of the module's plain names.
        parent: The call inside of which this one runs; the first has none.

    Attributes:
        own: What tells this call from others of the same caller, once an operator has run.
        label: The same, of all callers on the way.
    """

    __slots__ = ("_counts", "first_sources", "label", "name", "own", "parent", "path")

    def __init__(self, name: str, path: str, parent: ModuleCall | None = None) -> None:
        self.name, self.path, self.parent = name, path, parent
        self.own = self.label = name if parent is None else ""
        self.first_sources: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def count(self, what: str) -> int:
        """Return how often something has been counted in this call, this time included."""
        self._counts[what] = times = self._counts.get(what, 0) + 1
        return times

    def counted(self) -> Counted:
        """Return what has been counted, and which sources the first calls of children had."""
        return dict(self._counts), dict(self.first_sources)

    def count_on(self, counted: Counted) -> None:
        """Go on from what was counted then."""
        self._counts, self.first_sources = dict(counted[0]), dict(counted[1])

    @property
    def name_in_parent(self) -> str:
        """Name of the module, seen from the module that calls it."""
        if self.parent is None or not self.parent.name:
            return self.name
        prefix = f"{self.parent.name}."
        return self.name.removeprefix(prefix) if self.name.startswith(prefix) else f">{self.path}"

    def child_on_the_way_to(self, other: ModuleCall) -> ModuleCall | None:
        """Return which call, made by this one, led to another; ``None`` if none did."""
        child: ModuleCall | None = other
        while child is not None and child.parent is not self:
            child = child.parent
        return child


@final
class Point(NamedTuple):
    """Point of a forward pass.

    Args:
        calls: Calls that run, the innermost one last.
        counted: What they had counted.
    """

    calls: list[ModuleCall]
    counted: dict[ModuleCall, Counted]


@final
class Source(NamedTuple):
    """Source of a tensor: the call of a module that made it, or fed what made it, the last of several.

    Args:
        order: Counts up during a pass.
        call: The call.
        history: Stands for all operators that the tensor has come from; for this process alone.
    """

    order: int
    call: ModuleCall
    history: int


@final
class OperatorNames:
    """Names of the operators of one forward pass.

    An operator is named by the module that it runs in and by its torch function: ``block.conv:conv2d``. Functions that
    a module runs beside its children are told apart by the child whose output they take in, the latest of several:
    ``block:add[conv]`` adds the output of ``block.conv`` to something. Only what is the same by then is counted. So an
    operator keeps its name, though others before it are skipped.

    A module that one caller calls several times is numbered, ``norm``, ``norm#2``, by the child whose output it takes
    in: the source that was met first, the next, in whatever order later passes meet them.

    Args:
        sources: Name of a module that is called several times -> the sources of its calls, in the order of their
            numbers.
        grows: Whether a source that is new gets the next number, and is noted in ``sources``.
        start: Name of the module that runs when the pass begins.

    Example:
        >>> names = OperatorNames({})
        >>> names.begin("conv", "conv")
        >>> key, source = names.name("conv2d", ())
        >>> names.end()
        >>> key, names.name("add", (source,))[0]
        ('conv:conv2d', ':add[conv]')
    """

    def __init__(self, sources: dict[str, list[str]], *, grows: bool = False, start: str = "") -> None:
        self._sources, self._grows = sources, grows
        self._order, self._calls = 0, [ModuleCall(start, start)]

    @property
    def call(self) -> ModuleCall:
        """Innermost call that runs."""
        return self._calls[-1]

    def point(self) -> Point:
        """Return where the pass is, so that a part of it can run once more."""
        return Point([*self._calls], {call: call.counted() for call in self._calls})

    @contextmanager
    def at(self, point: Point) -> Iterator[None]:
        """Go back to a point of the pass, for what runs inside."""
        now = self.point()
        self._go_to(point)
        try:
            yield
        finally:
            self._go_to(now)

    def _go_to(self, point: Point) -> None:
        self._calls = [*point.calls]
        for call, counted in point.counted.items():
            call.count_on(counted)

    def begin(self, name: str, path: str) -> None:
        """Enter a call of a module.

        Args:
            name: Plain name of the module, by which its caller has it.
            path: First of the module's plain names.
        """
        self._calls.append(ModuleCall(name, path, self.call))

    def begin_unknown(self) -> None:
        """Enter a call of a module that is none of the network's: what it runs, its caller runs."""
        self._calls.append(self.call)

    def end(self) -> None:
        """Leave the innermost call."""
        if len(self._calls) > 1:
            self._calls.pop()

    def name(self, function: str, sources: Iterable[Source]) -> tuple[str, Source]:
        """Return the name of an operator that is about to run, and the source of what it gives.

        Args:
            function: Name of the torch function.
            sources: Sources of its arguments, of those that have one.
        """
        call, sources = self.call, tuple(sources)
        if not call.own:
            self._label(call, sources)
        child, source = _latest(call, sources)
        key = f"{call.label}:{function}" if child is None else f"{call.label}:{function}[{child.own}]"
        times = call.count(key)
        key = key if times == 1 else f"{key}#{times}"
        history = hash((key, *[each.history for each in sources]))
        if source is not None:
            return key, Source(source.order, source.call, history)
        self._order += 1
        return key, Source(self._order, call, history)

    def _label(self, call: ModuleCall, sources: tuple[Source, ...]) -> None:
        """Name a call when its first operator shows what it takes in: one without operators counts for nothing."""
        parent = call.parent
        if parent is None:
            return
        if not parent.own:
            self._label(parent, sources)
        call.own = self._numbered(call, parent, sources)
        separator = "." if parent.label and not call.own.startswith(">") else ""
        call.label = f"{parent.label}{separator}{call.own}"

    def _numbered(self, call: ModuleCall, parent: ModuleCall, sources: tuple[Source, ...]) -> str:
        own, (child, _) = call.name_in_parent, _latest(parent, sources)
        origin = "" if child is None else child.own
        times = parent.count(f"{own} {origin}")
        origin = origin if times == 1 else f"{origin} {times}"
        known = self._sources.get(call.name)
        if known is None and parent.first_sources.setdefault(own, origin) == origin:
            return own  # so far, one caller has called it but once
        if known is None:
            known = [parent.first_sources[own]]
            if self._grows:
                self._sources[call.name] = known
        if origin not in known:
            if not self._grows:
                return f"{own}[{origin}]"
            known.append(origin)
        number = known.index(origin) + 1
        return own if number == 1 else f"{own}#{number}"


def _latest(call: ModuleCall, sources: tuple[Source, ...]) -> tuple[ModuleCall | None, Source | None]:
    """Return which child of a call made the latest of some tensors, and the source of that one."""
    best: tuple[ModuleCall | None, Source | None] = None, None
    for source in sources:
        child = call.child_on_the_way_to(source.call)
        if child is not None and (best[1] is None or source.order > best[1].order):
            best = child, source
    return best
