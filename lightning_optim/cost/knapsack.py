"""Multiple-choice knapsack, solved exactly by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_STATES = 1 << 16
"""How many partial choices are followed at most, unless told otherwise."""


def cheapest_choices(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int, most_states: int = MOST_STATES
) -> list[int]:
    """Multiple-choice knapsack: one option of each item, with the least sum of losses at most a budget of costs.

    Args:
        costs: Cost of each option of each item.
        losses: Loss of each option of each item.
        budget: At least the sum of the smallest costs.
        most_states: How many partial choices to follow at most; the result is exact unless there are more.

    Returns:
        Place of the option of each item. Of equal losses the cheaper is taken.

    Raises:
        ValueError: If the budget is below the sum of the smallest costs.

    Example:
        >>> cheapest_choices([[1, 2], [1, 3]], [[5.0, 0.0], [9.0, 0.0]], budget=4)
        [0, 1]
    """
    room = budget - sum(min(options) for options in costs)
    if room < 0:
        raise ValueError(f"a budget of {budget} is below the sum of the smallest costs, {budget - room}")
    spent, lost = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    steps: list[tuple[Tensor, int]] = []
    for own_costs, own_losses in zip(costs, losses, strict=True):
        extra = torch.tensor(own_costs) - min(own_costs)
        spent = (spent[:, None] + extra).flatten()
        lost = (lost[:, None] + torch.tensor(own_losses, dtype=torch.float64)).flatten()
        kept = _thinned(_unbeaten(spent, lost, room), spent, room, most_states)
        spent, lost = spent[kept], lost[kept]
        steps.append((kept, len(own_costs)))
    place, chosen = len(spent) - 1, []  # the last state loses least, since loss falls as cost grows
    for kept, num_options in reversed(steps):
        place, option = divmod(int(kept[place]), num_options)
        chosen.append(option)
    return chosen[::-1]


def _unbeaten(spent: Tensor, lost: Tensor, room: int) -> Tensor:
    """Places of the states within the budget that no other beats in cost and loss, by ascending cost."""
    order = lost.argsort(stable=True)
    order = order[spent[order].argsort(stable=True)]
    order = order[spent[order] <= room]
    least = lost[order].cummin(0).values
    is_better = torch.ones(len(order), dtype=torch.bool)
    is_better[1:] = least[1:] < least[:-1]
    return order[is_better]


def _thinned(states: Tensor, spent: Tensor, room: int, most_states: int) -> Tensor:
    """The cheapest state and, of each step of cost, the one that loses least."""
    if len(states) <= most_states:
        return states
    step = spent[states] * (most_states - 1) // max(room, 1)
    is_kept = torch.ones(len(states), dtype=torch.bool)
    is_kept[:-1] = step[1:] > step[:-1]
    is_kept[0] = True
    return states[is_kept]
