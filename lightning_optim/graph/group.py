"""Channels that can only go together: slices of parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_optim.errors import ShrinkError
from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.propagate import Propagation
from lightning_optim.surgery.cut import CutPlan


@final
@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """The slices of one tensor, along one dimension, that belong to the channels of a group.

    Args:
        name: Name of the parameter or buffer.
        dim: Dimension of it.
        index: Positions along ``dim`` of each channel, shape ``[size, k]``.
        length: Length of the tensor along ``dim``; ``None`` if ``index`` covers all of it.
    """

    name: str
    dim: int
    index: Tensor
    length: int | None = None

    def kept(self, channels: Tensor) -> Tensor:
        """Positions that stay when only ``channels`` (sorted, shape ``[n]``) of the group stay."""
        stays = torch.ones(self.index.numel() if self.length is None else self.length, dtype=torch.bool)
        stays[self.index.reshape(-1)] = False
        stays[self.index[channels].reshape(-1)] = True
        return stays.nonzero().flatten()


@final
@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that can go one by one, each with all of its slices.

    Args:
        size: Number of channels.
        members: Where they lie.
        counts: Integer attributes that count them, as members of dimension 0 (``"attention.num_heads"``).
        is_normalized: Whether a statistic is taken over the channels (layer norm, mean over channels). Masked
            channels still enter it and removed ones do not, so that removal changes the function.
    """

    size: int
    members: tuple[Member, ...]
    counts: tuple[Member, ...] = ()
    is_normalized: bool = False

    @property
    def name(self) -> str:
        """Name of the first tensor in the group, and the dimension where it is not the first."""
        first = self.members[0]
        return first.name if first.dim == 0 else f"{first.name} (dim {first.dim})"


def keep_channels(choices: Iterable[tuple[Group, Tensor]]) -> CutPlan:
    """Turn the channels that stay into kept positions of every tensor concerned.

    Args:
        choices: Each group once, with the channels that stay: indices into the group, shape ``[n]``, n > 0.

    Raises:
        ShrinkError: If a group would lose every channel, or an index lies outside the group.

    Example:
        >>> group = Group(3, (Member("weight", 0, torch.arange(6).view(3, 2)),))
        >>> keep_channels([(group, torch.tensor([0, 2]))])
        {'weight': [(0, tensor([0, 1, 4, 5]))]}
    """
    kept: dict[tuple[str, int], Tensor] = {}
    lengths: dict[tuple[str, int], int] = {}
    for group, channels in choices:
        chosen = _checked(group, channels)
        for member in group.members + group.counts:
            place = (member.name, member.dim)
            lengths[place] = member.index.numel() if member.length is None else member.length
            now = member.kept(chosen)
            before = kept.get(place)
            kept[place] = now if before is None else now[torch.isin(now, before)]
    plan: CutPlan = {}
    for (name, dim), index in kept.items():
        if len(index) < lengths[name, dim]:
            plan.setdefault(name, []).append((dim, index))
    return plan


def _checked(group: Group, channels: Tensor) -> Tensor:
    chosen = torch.unique(channels.detach().cpu().to(torch.long))
    if not len(chosen):
        raise ShrinkError(f"group {group.name!r} would lose all of its {group.size} channels; keep at least one")
    if int(chosen[0]) < 0 or int(chosen[-1]) >= group.size:
        raise ShrinkError(
            f"group {group.name!r} has channels 0 to {group.size - 1}, got {int(chosen[0])} to {int(chosen[-1])}"
        )
    return torch.as_tensor(chosen)


Place = tuple[str, int]


def gather(propagation: Propagation) -> list[Group]:
    """Gather classes by the places where they lie, and how often they lie there."""
    places = _positions(propagation.tensors, propagation)
    counted = _positions({name: [axis] for name, axis in propagation.counts.items()}, propagation)
    by_shape: dict[tuple[tuple[Place, int], ...], list[int]] = {}
    for root, found in places.items():
        shape = tuple((place, len(positions)) for place, positions in found.items())
        by_shape.setdefault(shape, []).append(root)
    return [_group(roots, places, counted, propagation) for roots in by_shape.values()]


def _positions(tensors: dict[str, Axes], propagation: Propagation) -> dict[int, dict[Place, list[int]]]:
    """Class -> place -> positions, without what is frozen."""
    labelled = [
        ((name, dim), axis) for name, axes in tensors.items() for dim, axis in enumerate(axes) if axis is not None
    ]
    if not labelled:
        return {}
    everything = np.concatenate([axis for _, axis in labelled])
    roots, is_frozen = propagation.labels.find(everything), propagation.labels.is_frozen(everything)
    found: dict[int, dict[Place, list[int]]] = {}
    begin = 0
    for place, axis in labelled:
        for position in np.flatnonzero(~is_frozen[begin : begin + len(axis)]).tolist():
            found.setdefault(int(roots[begin + position]), {}).setdefault(place, []).append(position)
        begin += len(axis)
    return found


def _group(
    roots: list[int],
    places: dict[int, dict[Place, list[int]]],
    counted: dict[int, dict[Place, list[int]]],
    propagation: Propagation,
) -> Group:
    def member(place: Place, source: dict[int, dict[Place, list[int]]], length: int) -> Member:
        return Member(place[0], place[1], torch.tensor([source[root][place] for root in roots]), length)

    def length_of(name: str, dim: int) -> int:
        axis = propagation.tensors[name][dim]
        assert axis is not None
        return len(axis)

    members = tuple(member(place, places, length_of(*place)) for place in places[roots[0]])
    counts = tuple(
        member(place, counted, len(propagation.counts[place[0]]))
        for place in counted.get(roots[0], {})
        if all(len(counted.get(root, {}).get(place, ())) == len(counted[roots[0]][place]) for root in roots)
    )
    first: Axis = np.array(roots, dtype=np.int64)
    return Group(len(roots), members, counts, bool(propagation.labels.is_normalized(first).any()))
