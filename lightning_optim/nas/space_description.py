"""Description of a search space: what can vary, how many architectures there are, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from lightning_optim.nas.measure import say_number
from lightning_optim.search.decision import Decision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceDescription:
    """Description of a search space; as text, a few lines for people to read.

    Args:
        decisions: What there is to decide.
        num_architectures: How many architectures there are; decisions that do not matter to one do not count.
        cost: Name of the cost.
        cheapest: Lowest cost found by deciding one thing at a time.
        own: Cost of the network as the user has it.
        dearest: Highest cost, found likewise.

    Example:
        >>> kernel = Decision(name="stem:kernel", options=("3", "5"), default=1)
        >>> found = SpaceDescription(
        ...     decisions=(kernel,), num_architectures=2, cost="MACs", cheapest=90.0, own=250.0, dearest=250.0
        ... )
        >>> print(found)
        1 decision, 2 architectures
        MACs from 90 to 250, deciding one thing at a time; the own network has 250
          stem:kernel  3 | [5]
    """

    decisions: tuple[Decision, ...]
    num_architectures: int
    cost: str
    cheapest: float
    own: float
    dearest: float

    def __str__(self) -> str:
        width = max(len(decision.name) for decision in self.decisions)
        cheapest, own, dearest = map(say_number, (self.cheapest, self.own, self.dearest))
        return "\n".join([
            f"{_counted(len(self.decisions), 'decision')}, {_counted(self.num_architectures, 'architecture')}",
            f"{self.cost} from {cheapest} to {dearest}, deciding one thing at a time; the own network has {own}",
            *(f"  {decision.name:<{width}}  {self._options(decision)}" for decision in self.decisions),
        ])  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """The description as plain primitives, for a file that programs read."""
        return {
            "num_architectures": self.num_architectures,
            "cost": {"name": self.cost, "cheapest": self.cheapest, "own": self.own, "dearest": self.dearest},
            "decisions": {
                decision.name: {
                    "options": list(decision.options),
                    "own": decision.options[decision.default],
                    "only_with": self._conditions(decision),
                }
                for decision in self.decisions
            },
        }

    def _conditions(self, decision: Decision) -> dict[str, list[str]]:
        texts = {each.name: each.options for each in self.decisions}
        return {
            condition.decision: [texts[condition.decision][option] for option in condition.options]
            for condition in decision.conditions
        }

    def _options(self, decision: Decision) -> str:
        options = [f"[{text}]" if place == decision.default else text for place, text in enumerate(decision.options)]
        only = [f"{name} at {' or '.join(texts)}" for name, texts in self._conditions(decision).items()]
        return " | ".join(options) + (f"  only with {' and '.join(only)}" if only else "")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
