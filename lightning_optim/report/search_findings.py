"""Findings of an architecture search, for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from lightning_optim.errors import ArtefactError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Architecture that was evaluated: its options, by decision, and what was measured of it, by name."""

    options: Mapping[str, str]
    values: Mapping[str, float]
    fidelity: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFindings:
    """Findings of one search.

    Args:
        num_architectures: Size of the space.
        decisions: Decision -> its options.
        measures: What was measured, by name: ``title``, ``bound`` and ``mode`` of each.
        objectives: What the strategy improved.
        axes: What the front is of.
        own: Options of the network as it was.
        pick: What was picked.
        pareto: The front.
        evaluations: Everything that was evaluated, in order.
        effects: Decision -> option -> what it adds to the first objective.
        measured: What was measured of the pick once it was trained, by name, beside its value in the search.
    """

    num_architectures: int
    decisions: Mapping[str, Sequence[str]]
    measures: Mapping[str, Mapping[str, Any]]
    objectives: Sequence[str]
    axes: Sequence[str]
    own: Mapping[str, str]
    pick: Found
    pareto: Sequence[Found]
    evaluations: Sequence[Found]
    effects: Mapping[str, Mapping[str, float]]
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as primitives."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SearchFindings:
        """Return the findings that a search stage has written.

        Raises:
            ArtefactError: If a field is missing or unknown.
        """
        try:
            found = {name: [Found(**entry) for entry in values[name]] for name in ("pareto", "evaluations")}
            return SearchFindings(**{**values, **found, "pick": Found(**values["pick"])})
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"no findings of a search: {error}") from error

    def title(self, name: str) -> str:
        """What a measure is called."""
        return str(self.measures[name]["title"])

    def changes(self, found: Found) -> dict[str, str]:
        """The options of an architecture in which it differs from the pick; ``"(none)"`` for what it lacks."""
        mine, theirs = found.options, self.pick.options
        names = [name for name in self.decisions if mine.get(name) != theirs.get(name)]
        return {name: mine.get(name, "(none)") for name in names}
