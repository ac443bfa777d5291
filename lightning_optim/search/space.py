"""Search space: decisions, some of which are active only where others have certain options."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import final

from lightning_optim.search.decision import Candidate, Decision


@final
class SearchSpace:
    """Search space: all candidates that some decisions allow.

    Two candidates that differ in inactive decisions alone are the same. The canonical one of them has the inactive
    decisions at their defaults; all methods return canonical candidates.

    Args:
        decisions: What there is to decide, at least one; a decision's conditions are on earlier ones.

    Raises:
        ValueError: If there is no decision, a name stands twice, or a condition is on no earlier decision or on no
            option of it.

    Example:
        >>> from lightning_optim.search import Condition, Decision
        >>> block = Decision(name="block", options=("skip", "conv"), default=1)
        >>> is_there = Condition(decision="block", options=(1,))
        >>> kernel = Decision(name="kernel", options=("3", "5", "7"), default=0, conditions=(is_there,))
        >>> space = SearchSpace([block, kernel])
        >>> space.num_candidates
        4
        >>> space.canonical({"block": 0, "kernel": 2})
        {'block': 0, 'kernel': 0}
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.decisions = tuple(decisions)
        self._check_decisions()

    @property
    def default(self) -> Candidate:
        """What holds without a search."""
        return {decision.name: decision.default for decision in self.decisions}

    @cached_property
    def num_candidates(self) -> int:
        """How many candidates there are; inactive decisions do not multiply."""
        known: dict[tuple[int, tuple[int | None, ...]], int] = {}

        def count(position: int, decided: dict[str, int | None]) -> int:
            if position == len(self.decisions):
                return 1
            # What no later condition asks for does not matter: a chain of blocks is counted once a block.
            key = position, tuple(decided[name] for name in self._needed_after[position] if name in decided)
            if key not in known:
                decision = self.decisions[position]
                options = range(len(decision.options)) if _is_active(decision, decided) else (None,)
                known[key] = sum(count(position + 1, {**decided, decision.name: option}) for option in options)
            return known[key]

        return count(0, {})

    def checked(self, candidate: Mapping[str, int]) -> Candidate:
        """Return the candidate, in the order of the decisions.

        Raises:
            ValueError: If a decision is missing or unknown, or its option out of range.
        """
        known = {decision.name: decision for decision in self.decisions}
        if candidate.keys() != known.keys():
            missing, unknown = sorted(known.keys() - candidate.keys()), sorted(candidate.keys() - known.keys())
            raise ValueError(f"a candidate decides {list(known)}; missing {missing}, unknown {unknown}")
        for name, option in candidate.items():
            if not 0 <= option < len(known[name].options):
                raise ValueError(
                    f"{name!r} has the options {list(known[name].options)}, indexed from 0 to "
                    f"{len(known[name].options) - 1}, got {option}"
                )
        return {name: int(candidate[name]) for name in known}

    def active(self, candidate: Mapping[str, int]) -> tuple[Decision, ...]:
        """The decisions that matter to a candidate."""
        decided: dict[str, int | None] = {}
        for decision in self.decisions:
            decided[decision.name] = candidate[decision.name] if _is_active(decision, decided) else None
        return tuple(decision for decision in self.decisions if decided[decision.name] is not None)

    def canonical(self, candidate: Mapping[str, int]) -> Candidate:
        """The one of the equal candidates whose inactive decisions are at their defaults.

        Raises:
            ValueError: If a decision is missing or unknown, or its option out of range.
        """
        return self._canonical(self.checked(candidate))

    def sample(self, draw: random.Random) -> Candidate:
        """Draw every decision uniformly (single-path sampling: Guo et al., 2020; arXiv:1904.00420, section 3.2)."""
        return self._canonical({entry.name: draw.randrange(len(entry.options)) for entry in self.decisions})

    def neighbours(self, candidate: Mapping[str, int]) -> list[Candidate]:
        """The candidates that differ in one active decision; what becomes active with it is at its default."""
        own = self.canonical(candidate)
        return [
            self._canonical({**own, decision.name: option})
            for decision in self.active(own)
            for option in range(len(decision.options))
            if option != own[decision.name]
        ]

    def mutated(self, candidate: Mapping[str, int], draw: random.Random) -> Candidate:
        """The candidate with another option in one active decision; what becomes active with it is drawn."""
        own = self.canonical(candidate)
        free = [decision for decision in self.active(own) if len(decision.options) > 1]
        if not free:
            return own
        decision = draw.choice(free)
        others = [option for option in range(len(decision.options)) if option != own[decision.name]]
        changed, drawn = {**own, decision.name: draw.choice(others)}, self.sample(draw)
        before = {entry.name for entry in self.active(own)}
        woken = {entry.name: drawn[entry.name] for entry in self.decisions if entry.name not in before}
        return self._canonical({**changed, **woken})

    def options_of(self, candidate: Mapping[str, int]) -> dict[str, str]:
        """What a candidate decides, for people and files: name of each active decision -> its option."""
        return {decision.name: decision.options[candidate[decision.name]] for decision in self.active(candidate)}

    def from_options(self, options: Mapping[str, str]) -> Candidate:
        """The candidate of these options, as ``options_of`` returns them.

        Raises:
            ValueError: If an active decision is missing, or a name or an option is unknown.
        """
        unknown = sorted(options.keys() - {decision.name for decision in self.decisions})
        if unknown:
            raise ValueError(f"nothing is decided about {unknown[0]!r}, but about {[d.name for d in self.decisions]}")
        candidate = self.default
        for decision in self.decisions:
            option = options.get(decision.name)
            if option is not None and option not in decision.options:
                raise ValueError(f"{decision.name!r} has the options {list(decision.options)}, got {option!r}")
            if option is not None:
                candidate[decision.name] = decision.options.index(option)
        missing = [decision.name for decision in self.active(candidate) if decision.name not in options]
        if missing:
            raise ValueError(f"an option of {missing[0]!r} is needed, got none")
        return self.canonical(candidate)

    def __iter__(self) -> Iterator[Candidate]:
        """All candidates, each once, the first decision varying slowest."""
        return self._completed({})

    def _completed(self, decided: dict[str, int | None]) -> Iterator[Candidate]:
        if len(decided) == len(self.decisions):
            yield {entry.name: _option(decided[entry.name], entry) for entry in self.decisions}
            return
        decision = self.decisions[len(decided)]
        options = range(len(decision.options)) if _is_active(decision, decided) else (None,)
        for option in options:
            yield from self._completed({**decided, decision.name: option})

    def _canonical(self, candidate: Candidate) -> Candidate:
        active = {decision.name for decision in self.active(candidate)}
        return {entry.name: candidate[entry.name] if entry.name in active else entry.default
                for entry in self.decisions}  # fmt: skip

    @cached_property
    def _needed_after(self) -> list[tuple[str, ...]]:
        # Per position: the decisions that conditions from there on are about.
        needed: list[tuple[str, ...]] = []
        names: dict[str, None] = {}
        for decision in reversed(self.decisions):
            names.update(dict.fromkeys(condition.decision for condition in decision.conditions))
            needed.append(tuple(names))
        return needed[::-1]

    def _check_decisions(self) -> None:
        if not self.decisions:
            raise ValueError("a search needs at least one decision, got none")
        known: dict[str, Decision] = {}
        for decision in self.decisions:
            if decision.name in known:
                raise ValueError(f"two decisions are named {decision.name!r}: each needs a name of its own")
            for condition in decision.conditions:
                if condition.decision not in known:
                    raise ValueError(
                        f"{decision.name!r} is active only with certain options of {condition.decision!r}, which must "
                        f"come before it; before it are {list(known)}"
                    )
                most = len(known[condition.decision].options) - 1
                if not all(0 <= option <= most for option in condition.options):
                    raise ValueError(
                        f"{decision.name!r} asks for the options {list(condition.options)} of {condition.decision!r}, "
                        f"whose options are indexed from 0 to {most}"
                    )
            known[decision.name] = decision


def _is_active(decision: Decision, decided: Mapping[str, int | None]) -> bool:
    return all(decided[condition.decision] in condition.options for condition in decision.conditions)


def _option(decided: int | None, decision: Decision) -> int:
    return decision.default if decided is None else decided
