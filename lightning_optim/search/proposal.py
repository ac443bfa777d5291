"""Proposal of a search: a candidate, and how much to spend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_optim.search.decision import Candidate


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Proposal of a search.

    Args:
        candidate: What to evaluate.
        fidelity: How much to spend on it, in units of who evaluates, such as epochs; ``None`` leaves that to him.
    """

    candidate: Candidate
    fidelity: int | None = None
