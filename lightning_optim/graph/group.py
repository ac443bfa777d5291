"""Groups of coupled channels: slices of parameters and buffers that can only go together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_optim.errors import ShrinkError
from lightning_optim.graph.labels import Axis
from lightning_optim.graph.propagate import Propagation
from lightning_optim.surgery.cut import CutPlan

TensorDim = tuple[str, int]
"""Name and dimension of a tensor."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Member of a group: the slices of one tensor, along one dimension, that belong to the group's channels.

    Args:
        name: Name of the parameter or buffer.
        dim: Dimension of it.
        index: Positions along ``dim`` of each channel, shape ``[size, k]``.
        length: Length of the tensor along ``dim``; ``None`` if ``index`` covers all of it.
        role: What ``dim`` would be if every weight were ``[out, in, ...]``: 0 for what a weight makes, 1 for what it
            reads; -1 is ``dim`` itself.
    """

    name: str
    dim: int
    index: Tensor
    length: int | None = None
    role: int = -1

    def __post_init__(self) -> None:
        if self.role < 0:
            object.__setattr__(self, "role", self.dim)

    def kept(self, channels: Tensor) -> Tensor:
        """Positions that stay when only ``channels`` (sorted, shape ``[n]``) of the group stay."""
        return self.stays(channels).nonzero().flatten()

    def stays(self, channels: Tensor) -> Tensor:
        """Whether each position stays, shape ``[length]``."""
        stays = torch.ones(self.index.numel() if self.length is None else self.length, dtype=torch.bool)
        stays[self.index.reshape(-1)] = False
        stays[self.index[channels].reshape(-1)] = True
        return stays


@final
@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Group of channels that can go one by one, each with all of its slices.

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
        return first.name if first.role == 0 else f"{first.name} (dim {first.dim})"


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
    stays: dict[TensorDim, Tensor] = {}
    for group, channels in choices:
        chosen = _checked(group, channels)
        for member in group.members + group.counts:
            place, now = (member.name, member.dim), member.stays(chosen)
            stays[place] = now & stays[place] if place in stays else now
    plan: CutPlan = {}
    for (name, dim), mask in stays.items():
        if not mask.all():
            plan.setdefault(name, []).append((dim, mask.nonzero().flatten()))
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


def gather(propagation: Propagation) -> list[Group]:
    """Gather classes by the places where they lie, and how often they lie there."""
    axes = {(name, dim): axis for name, found in propagation.tensors.items() for dim, axis in enumerate(found)}
    labelled = {place: axis for place, axis in axes.items() if axis is not None}
    counting = {(name, 0): axis for name, axis in propagation.counts.items()}
    parts, counted = _parts(labelled, propagation), _parts(counting, propagation)
    by_shape: dict[bytes, list[int]] = {}
    for root, part in parts.items():
        by_shape.setdefault(part.places.tobytes(), []).append(root)
    groups = []
    for roots in by_shape.values():
        members = _members(labelled, [parts[root] for root in roots], propagation.input_first)
        counts = _members(counting, [counted[root] for root in roots]) if all(map(counted.__contains__, roots)) else ()
        is_normalized = propagation.labels.is_normalized(np.array(roots, dtype=np.int64))
        groups.append(Group(len(roots), members, counts, bool(is_normalized.any())))
    return groups


@final
@dataclass(frozen=True, slots=True)
class _Part:
    """Positions of a class: the number of a place, and the position in it, shape ``[n]`` each."""

    places: Axis
    positions: Axis


def _parts(axes: Mapping[TensorDim, Axis], propagation: Propagation) -> dict[int, _Part]:
    """Each class that is not frozen, in the order in which they appear."""
    if not axes:
        return {}
    everything = np.concatenate([*axes.values()])
    places = np.repeat(np.arange(len(axes)), [len(axis) for axis in axes.values()])
    positions = np.concatenate([np.arange(len(axis)) for axis in axes.values()])
    free = np.flatnonzero(~propagation.labels.is_frozen(everything))
    roots = propagation.labels.find(everything[free])
    order = np.argsort(roots, kind="stable")
    runs = [run for run in np.split(order, np.flatnonzero(np.diff(roots[order])) + 1) if len(run)]
    return {
        int(roots[run[0]]): _Part(places[free[run]], positions[free[run]])
        for run in sorted(runs, key=lambda run: run[0])
    }


def _members(
    axes: Mapping[TensorDim, Axis], parts: list[_Part], input_first: Collection[str] = ()
) -> tuple[Member, ...]:
    """The places where each of several classes lies equally often."""
    numbered, first = list(axes.items()), parts[0].places
    if any(not np.array_equal(part.places, first) for part in parts):
        return ()
    table = torch.from_numpy(np.stack([part.positions for part in parts]))
    found = []
    for number in np.unique(first).tolist():
        (name, dim), axis = numbered[number]
        index = table[:, torch.from_numpy(first == number)]
        found.append(Member(name, dim, index, len(axis), 1 - dim if name in input_first and dim < 2 else dim))
    return tuple(found)
