"""Decisions of a search, and the candidates that decide them: architectures, hyperparameters, recipes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

Candidate = dict[str, int]  # name of each decision -> index of its option


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Decision of a search: one thing to decide, with its options.

    Args:
        name: Tells it from the other decisions, such as ``"net.mix:operation"`` or ``"learning_rate"``.
        options: What can be chosen, at least one, as text for people to read.
        default: Index of the option that holds without a search.
    """

    name: str
    options: tuple[str, ...]
    default: int


def default_candidate(decisions: Sequence[Decision]) -> Candidate:
    """Candidate of the defaults: what holds without a search.

    Example:
        >>> default_candidate([Decision(name="stem:width", options=("8", "16"), default=1)])
        {'stem:width': 1}
    """
    return {decision.name: decision.default for decision in decisions}


def sample_candidate(decisions: Sequence[Decision], seed: int, step: int) -> Candidate:
    """Candidate with every decision drawn uniformly, as a function of ``(seed, step)`` alone.

    Every rank of a job, and every resumed run, thus draws the same without communication
    (single-path uniform sampling: Guo et al., 2020; arXiv:1904.00420, section 3.2).

    Example:
        >>> decisions = [Decision(name="mix:operation", options=("own", "skip"), default=0)]
        >>> sample_candidate(decisions, seed=1, step=7) == sample_candidate(decisions, seed=1, step=7)
        True
    """
    # A string seeds through SHA-512: the same on every platform, and unlike hash() in every process.
    draw = random.Random(f"{seed}/{step}")
    return {decision.name: draw.randrange(len(decision.options)) for decision in decisions}


def check_candidate(decisions: Sequence[Decision], candidate: Mapping[str, int]) -> Candidate:
    """Return the candidate, in the order of the decisions.

    Raises:
        ValueError: If a decision is missing or unknown, or its option out of range.
    """
    known = {decision.name: decision for decision in decisions}
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
