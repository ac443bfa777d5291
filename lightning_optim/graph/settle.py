"""Cut only what the model's own code can follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

import torch

from lightning_optim.graph.group import Group, gather, keep_channels
from lightning_optim.graph.propagate import Propagation
from lightning_optim.graph.skeleton import SKELETON, Skeleton
from lightning_optim.surgery.cut import CutPlan

OPERATORS = 40_000
"""Operators that a search may run, some ten seconds; a number and no time, so that every process finds the same."""


def settle(propagation: Propagation) -> tuple[list[Group], dict[str, str]]:
    """Find groups that the model's code can lose channels of, whichever and however many.

    Code that derives a head's width from the width of its input cannot lose a head alone: such heads are tied to the
    channels of their input, a head with as many channels as it is wide. Groups that the code still cannot follow
    are found by halving, and stay whole.

    Args:
        propagation: Labels of the graph; heads are tied in it.

    Returns:
        The groups that can go, and the reason for each of the others, by its name.

    Example:
        >>> from torch import nn
        >>> from lightning_optim.graph.capture import capture
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> groups, whole = settle(Propagation(capture(net, (torch.ones(2, 3),))))
        >>> len(groups), whole
        (1, {})
    """
    groups = gather(propagation)
    skeleton: Skeleton | None = propagation.program.graph_module.meta.get(SKELETON)
    if skeleton is None:
        return groups, {}
    trials = max(10, OPERATORS // len(propagation.axes))
    search = _Search(skeleton.objection, trials)
    whole: dict[Group, str] = {}
    if search.objection(groups) is not None:
        groups = _tied(groups, propagation, search)
        whole = search.faulty(groups)
    groups = [group for group in groups if group not in whole]
    whole |= _Search(skeleton.objection_in_training, trials).faulty(groups)
    return [group for group in groups if group not in whole], {group.name: reason for group, reason in whole.items()}


def _tied(groups: list[Group], propagation: Propagation, search: _Search) -> list[Group]:
    """Groups with heads tied to the channels of their input, if the code cannot follow them apart."""
    heads = _heads(groups, propagation)
    concerned = [group for group in groups if group in heads or group in heads.values()]
    if not concerned or search.objection(concerned) is None:
        return groups
    for group in heads:
        _tie(group, propagation)
    return gather(propagation)


@final
class _Search:
    """Looks for groups whose cut the code cannot follow, in a limited number of trials."""

    def __init__(self, judge: Callable[[CutPlan], str | None], trials: int) -> None:
        self._judge, self._trials, self._left = judge, trials, trials

    def objection(self, groups: Iterable[Group]) -> str | None:
        """Why the code cannot follow a cut of these groups, each by another number of channels."""
        self._left -= 1
        cuts = [(group, _all_but(1 + place % 3, group)) for place, group in enumerate(groups) if group.size > 1]
        return self._judge(keep_channels(cuts))

    def faulty(self, groups: list[Group]) -> dict[Group, str]:
        """The groups that must stay whole, with the reason."""
        sound: list[Group] = []
        whole: dict[Group, str] = {}
        waiting = [groups] if groups else []
        while waiting:
            part = waiting.pop()
            if self._left <= 0:
                whole |= dict.fromkeys(part, f"{self._trials} trials did not find which channels the code can lose")
                continue
            reason = self.objection(sound + part)
            if reason is None:
                sound += part
            elif len(part) == 1:
                whole[part[0]] = reason
            else:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
        return whole


def _all_but(number: int, group: Group) -> torch.Tensor:
    return torch.arange(max(1, group.size - number))


def _heads(groups: list[Group], propagation: Propagation) -> dict[Group, Group]:
    """Groups that a square weight reads, and the wider group that it writes: ``out(attention)`` of one width."""
    by_place = {(member.name, member.dim): group for group in groups for member in group.members}
    found: dict[Group, Group] = {}
    for (name, dim), group in by_place.items():
        written = by_place.get((name, 0))
        axes = propagation.tensors[name]
        if dim != 1 or written is None or axes[0] is None or axes[1] is None or len(axes[0]) != len(axes[1]):
            continue
        if written is not group and group.size < written.size == len(axes[0]):
            found[group] = written
    return found


def _tie(group: Group, propagation: Propagation) -> None:
    """Unite what square weights read of a group with what they write, position by position."""
    for member in group.members:
        axes = propagation.tensors[member.name]
        if member.dim == 1 and axes[0] is not None and axes[1] is not None and len(axes[0]) == len(axes[1]):
            propagation.labels.unite(axes[0], axes[1])
