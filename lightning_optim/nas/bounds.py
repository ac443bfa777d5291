"""Bounds of a search: whether anything in a space is within them."""

from __future__ import annotations

from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.measure import say_number
from lightning_optim.nas.selection import COST, Selection
from lightning_optim.nas.supernet import Supernet


def cheapest_architectures(supernet: Supernet, selection: Selection) -> list[Architecture]:
    """Return the cheapest architecture by the cost, and by every other cost that has a bound.

    Each is found deciding one thing at a time: under a tight bound, a search begins from what is allowed.
    """
    wanted = [entry for name, entry in selection.costs.items() if name == COST or entry.bound is not None]
    found = [supernet.find_cheapest(entry.cost) for entry in wanted]
    return [entry for index, entry in enumerate(found) if entry not in found[:index]]


def find_broken_bound(supernet: Supernet, selection: Selection) -> str | None:
    """Say which bound not even the cheapest architecture meets, and which one that is; ``None`` if there is none."""
    for entry in selection.costs.values():
        if entry.bound is None:
            continue
        cheapest = supernet.find_cheapest(entry.cost)
        least = supernet.measure(cheapest, entry.cost)
        if not entry.allows(least):
            chosen = {decision.name: decision.options[cheapest[decision.name]] for decision in supernet.decisions}
            listed = ", ".join(f"{name}={option}" for name, option in chosen.items())
            return (
                f"no architecture of the space is within {entry.describe()}: the cheapest has {say_number(least)} "
                f"({listed}); raise the bound, or widen the space downwards"
            )
    return None
