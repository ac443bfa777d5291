"""What is still to be decided about a network, and one way to decide it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

Architecture = dict[str, int]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One thing to decide, with its options.

    Args:
        name: The module's plain name and what is decided about it, such as ``"net.mix:operation"``.
        options: What can be chosen, at least one, for people to read.
        default: Index of the option that the user's own network has.
    """

    name: str
    options: tuple[str, ...]
    default: int


def default_architecture(decisions: Sequence[Decision]) -> Architecture:
    """The user's own network: every decision at its default.

    Example:
        >>> default_architecture([Decision(name="stem:width", options=("8", "16"), default=1)])
        {'stem:width': 1}
    """
    return {decision.name: decision.default for decision in decisions}


def sample_architecture(decisions: Sequence[Decision], seed: int, step: int) -> Architecture:
    """Draw every decision uniformly, as a function of ``(seed, step)`` alone.

    Every rank of a job, and every resumed run, thus draws the same without a word said
    (single-path uniform sampling: Guo et al., 2020; arXiv:1904.00420, section 3.2).

    Example:
        >>> decisions = [Decision(name="mix:operation", options=("own", "skip"), default=0)]
        >>> sample_architecture(decisions, seed=1, step=7) == sample_architecture(decisions, seed=1, step=7)
        True
    """
    # A string seeds through SHA-512: the same on every platform, and unlike hash() in every process.
    draw = random.Random(f"{seed}/{step}")
    return {decision.name: draw.randrange(len(decision.options)) for decision in decisions}


def check_architecture(decisions: Sequence[Decision], architecture: Mapping[str, int]) -> Architecture:
    """Return the architecture, in the order of the decisions.

    Raises:
        ValueError: If a decision is missing or unknown, or its option out of range.
    """
    known = {decision.name: decision for decision in decisions}
    if architecture.keys() != known.keys():
        missing, unknown = sorted(known.keys() - architecture.keys()), sorted(architecture.keys() - known.keys())
        raise ValueError(f"an architecture decides {list(known)}; missing {missing}, unknown {unknown}")
    for name, option in architecture.items():
        if not 0 <= option < len(known[name].options):
            raise ValueError(
                f"{name!r} has the options {list(known[name].options)}, indexed from 0 to "
                f"{len(known[name].options) - 1}, got {option}"
            )
    return {name: int(architecture[name]) for name in known}
