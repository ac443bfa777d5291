"""Coupled channels: which channels of a model can only go together, and which can go at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from lightning_optim.graph.capture import Captured
from lightning_optim.graph.feasible import feasible_groups
from lightning_optim.graph.group import Group, Member, keep_channels
from lightning_optim.graph.propagate import Propagation

__all__ = ["Coupling", "Group", "Member", "couple", "keep_channels"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """Coupling of a network: all groups of channels that can only go together.

    Args:
        groups: Groups whose channels can go.
        unknown: Operators that had no rule and froze what they met, with their number.
        propagation: Labels of every value of the graph.
        whole: Names of groups that the model's code cannot lose channels of, with the reason.
    """

    groups: tuple[Group, ...]
    unknown: dict[str, int]
    propagation: Propagation
    whole: dict[str, str] = field(default_factory=dict)
    _by_place: dict[tuple[str, int], Group] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for group in self.groups:
            for member in group.members:
                if member.length in (None, member.index.numel()):
                    self._by_place[member.name, member.role] = group

    def group_of(self, name: str, role: int = 0) -> Group | None:
        """Return the group that all positions along one dimension of a tensor belong to, or ``None``.

        Args:
            name: Name of the tensor.
            role: 0 for the channels that a weight makes, 1 for those that it reads, in whichever order it has them; of
                any other tensor, the dimension.
        """
        return self._by_place.get((name, role))


def couple(captured: Captured) -> Coupling:
    """Find which channels can go, and what goes with them.

    Every axis of every parameter gets one label per position; operators hand labels on, unite them, or freeze
    them. What reaches an output or an operator without a rule is frozen. The classes of labels that are left
    are channels; those that lie in the same places form a group. Groups are then tied, or left out, where the code
    of the model could not run without some of their channels.

    Args:
        captured: What ``capture_network`` returns.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_optim.graph import capture_network
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> coupling = couple(capture_network(net, (torch.ones(2, 3),)))
        >>> [(group.size, [(m.name, m.dim) for m in group.members]) for group in coupling.groups]
        [(4, [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)])]
    """
    propagation = Propagation(captured)
    groups, whole = feasible_groups(propagation)
    return Coupling(tuple(groups), dict(propagation.unknown), propagation, whole)
