"""Feasible groups: those whose channels the model's own code can lose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import final

import torch

from lightning_optim.graph.group import Group, gather, keep_channels
from lightning_optim.graph.labels import Axis
from lightning_optim.graph.propagate import Propagation
from lightning_optim.graph.shape_model import Objection
from lightning_optim.surgery.cut import CutPlan

OPERATORS = 40_000
"""Operators that a search may run, some ten seconds. A count, not a time limit: every rank must find the same."""


def feasible_groups(propagation: Propagation) -> tuple[list[Group], dict[str, str]]:
    """Find groups that the model's code can lose channels of, whichever and however many.

    Code that derives a head's width from the width of its input cannot lose a head alone: such heads are tied to the
    channels of their input, a head with as many channels as it is wide. Groups that the code still cannot follow
    are looked for around the module whose code failed, and by halving. They stay whole, unless the code follows where
    they go with the input of the layer that writes them.

    Args:
        propagation: Labels of the graph; heads are tied in it.

    Returns:
        The groups that can go, and the reason for each of the others, by its name.

    Example:
        >>> from torch import nn
        >>> from lightning_optim.graph import capture_network
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> groups, whole = feasible_groups(Propagation(capture_network(net, (torch.ones(2, 3),))))
        >>> len(groups), whole
        (1, {})
    """
    groups = gather(propagation)
    shape_model = propagation.shape_model
    if shape_model is None:
        return groups, {}
    trials = max(10, OPERATORS // len(propagation.axes))
    search = _FaultSearch(shape_model.objection, trials)
    whole: dict[Group, str] = {}
    if search.objection(groups) is not None:
        groups = _tied(groups, propagation, search)
        whole = search.faulty(groups)
        if _tie_squares(whole, propagation):
            names = {group.name for group in groups if group not in whole}
            groups = gather(propagation)
            sound = [group for group in groups if group.name in names]
            whole = search.faulty([group for group in groups if group not in sound], sound)
    groups = [group for group in groups if group not in whole]
    whole |= _FaultSearch(shape_model.objection_in_training, trials).faulty(groups)
    return [group for group in groups if group not in whole], {group.name: reason for group, reason in whole.items()}


def _tied(groups: list[Group], propagation: Propagation, search: _FaultSearch) -> list[Group]:
    """Groups with heads tied to the channels of their input, if the code cannot follow them apart."""
    found = list(_derived(groups, propagation))
    widths = [group for group in groups if any(group is width for _, width, _, _ in found)]
    concerned = [group for group in groups if group in widths or any(group is heads for heads, _, _, _ in found)]
    # If the widths can go without the heads, neither is derived from the other, and it is the heads that must stay.
    if not found or search.objection(concerned) is None or search.objection(widths) is None:
        return groups
    if search.objection([group for group in groups if any(group is heads for heads, _, _, _ in found)]) is None:
        return groups  # heads can go alone: what the code cannot follow is not a cut of theirs
    for _, _, inner, outer in found:
        propagation.labels.unite(inner, outer)
    return gather(propagation)


@final
class _FaultSearch:
    """Search for groups whose cut the code cannot follow, in a limited number of trials."""

    def __init__(self, judge: Callable[[CutPlan], Objection | None], trials: int) -> None:
        self._judge, self._trials, self._left = judge, trials, trials

    def objection(self, groups: Iterable[Group]) -> Objection | None:
        """Why the code cannot follow a cut of these groups, each by another number of channels."""
        self._left -= 1
        cuts = [(group, _all_but(1 + place % 3, group)) for place, group in enumerate(groups) if group.size > 1]
        return self._judge(keep_channels(cuts))

    def faulty(self, groups: list[Group], known: Iterable[Group] = ()) -> dict[Group, str]:
        """The groups that must stay whole beside others that are known to go, with the reason."""
        sound = list(known)
        suspects = self._suspects(groups, sound)
        sound += [group for group in groups if group not in suspects]
        whole: dict[Group, str] = {}
        waiting = [suspects] if suspects else []
        while waiting:
            part = waiting.pop()
            if self._left <= 0:
                whole |= dict.fromkeys(part, f"{self._trials} trials did not find which channels the code can lose")
                continue
            objection = self.objection(sound + part)
            if objection is None:
                sound += part
            elif len(part) == 1:
                whole[part[0]] = objection.reason
            else:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
        return whole

    def _suspects(self, groups: list[Group], known: Sequence[Group]) -> list[Group]:
        """Groups without which the rest can go: those around the modules that fail, or all if these do not tell.

        One trial for each failure, while halving takes one for each time that the groups are halved.
        """
        innocent = list(groups)
        while innocent and self._left > 0:
            objection = self.objection([*known, *innocent])
            if objection is None:
                return [group for group in groups if group not in innocent]
            blamed = [group for group in innocent if _touches(group, objection.module)]
            if not blamed or not objection.module:
                break
            innocent = [group for group in innocent if group not in blamed]
        return list(groups)


def _touches(group: Group, module: str) -> bool:
    return any(member.name.startswith(f"{module}.") for member in group.members)


def _all_but(number: int, group: Group) -> torch.Tensor:
    return torch.arange(max(1, group.size - number))


def _derived(groups: list[Group], propagation: Propagation) -> Iterator[tuple[Group, Group, Axis, Axis]]:
    """Heads, the channels that they are made of, and the two widths: equal ones, since the code may derive one.

    ``out(attention(qkv(x)))``: what ``out`` reads of the heads is as wide as what ``qkv`` reads of ``x``.
    """
    by_place = {(member.name, member.role): group for group in groups for member in group.members}
    for heads in groups:
        inner = [axis for member in heads.members if member.role == 1 for axis in _axis(propagation, member.name, 1)]
        makers = [member.name for member in heads.members if member.role == 0 and member.index.shape[1] > 1]
        for maker, axis in itertools.product(makers, inner):
            width = by_place.get((maker, 1))
            for outer in _axis(propagation, maker, 1):
                if width is not None and width is not heads and heads.size < width.size == len(outer) == len(axis):
                    yield heads, width, axis, outer


def _tie_squares(whole: Iterable[Group], propagation: Propagation) -> bool:
    """Tie what square layers write to what they read, where both must stay otherwise; tell whether there were any.

    ``layer(x).reshape(x.shape)`` holds the two together. Groups that stay anyway lose nothing by it.
    """
    by_place = {(member.name, member.role): group for group in whole for member in group.members}
    found = False
    for (name, role), written in by_place.items():
        read = by_place.get((name, 1))
        if role == 0 and read is not None and read is not written and read.size == written.size:
            outer, inner = _axis(propagation, name, 0), _axis(propagation, name, 1)
            if len(outer[0]) == len(inner[0]) == read.size:
                propagation.labels.unite(outer[0], inner[0])
                found = True
    return found


def _axis(propagation: Propagation, name: str, role: int) -> list[Axis]:
    axes, dim = propagation.tensors[name], 1 - role if name in propagation.input_first else role
    axis = axes[dim] if dim < len(axes) else None
    return [] if axis is None else [axis]
