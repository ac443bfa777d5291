"""Decisions of a search, and the candidates that decide them: architectures, hyperparameters, recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

Candidate = dict[str, int]  # name of each decision -> index of its option


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Condition of a decision: another decision has one of certain options.

    Args:
        decision: Name of the other decision. Where that one is inactive itself, the condition does not hold.
        options: Indices of the options with which it holds, at least one.

    Raises:
        ValueError: If there is no option.
    """

    decision: str
    options: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise ValueError(
                f"a condition on {self.decision!r} needs at least one option with which it holds, got none"
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Decision of a search: one thing to decide, with its options.

    Args:
        name: Tells it from the other decisions, such as ``"net.mix:operation"`` or ``"learning_rate"``.
        options: What can be chosen, at least one, as text for people to read.
        default: Index of the option that holds without a search.
        conditions: It is active only where all of them hold, such as a block's kernel size only where the block is
            not skipped; an inactive decision changes nothing.

    Raises:
        ValueError: If there is no option, or the default is none of them.
    """

    name: str
    options: tuple[str, ...]
    default: int
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.default < len(self.options):
            raise ValueError(
                f"the default of {self.name!r} must be the index of one of its options {list(self.options)}, "
                f"got {self.default}"
            )
