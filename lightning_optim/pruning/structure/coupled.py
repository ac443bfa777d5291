"""Coupled structures: channels that fall with all that is coupled to them, and can be physically removed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.errors import ShrinkError, TargetError
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.pruning.structure.base import Shrink, Structure, TouchedDim


class CoupledStructure(Structure):
    """Coupled structure: groups of coupled channels lose some of them; at least one of each stays."""

    needs_coupling: ClassVar[bool] = True

    @abstractmethod
    @override
    def groups(self, coupling: Coupling | None, weights: Mapping[str, Tensor]) -> dict[str, Group]:
        """The groups that ``weights`` make and that can lose channels, by the name of their pool."""

    @property
    def kept_multiple(self) -> int:
        """Number of which a multiple of channels is kept."""
        return 1

    @override
    def pools(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        return {name: channel_scores(group, scores) for name, group in self.groups(coupling, weights).items()}

    @override
    def masks(
        self, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor], coupling: Coupling | None
    ) -> dict[str, Tensor]:
        losing = {name: channels for name, channels in keep.items() if not channels.all()}
        if not losing:
            return {}
        return channel_masks(self.groups(coupling, {name: weights[name] for name in losing}), losing, weights)

    @override
    def touched(self, weights: Mapping[str, Tensor], coupling: Coupling) -> set[TouchedDim]:
        members = [member for group in self.groups(coupling, weights).values() for member in group.members]
        return {(member.name, member.dim if self.shrink == "update" else None) for member in members}

    @override
    def fitted(self, keep: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: round_up(mask, scores[name], self.kept_multiple) for name, mask in keep.items()}

    @override
    def entries(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ShrinkError(
            f"'{type(self).__name__}' couples layers: what it keeps cannot be read off a rank's part of the weights"
        )


def check_shrink(shrink: Shrink) -> None:
    """Refuse a setting of ``shrink`` that there is not.

    Raises:
        ValueError: If it is none of the three.
    """
    if shrink not in ("never", "end", "update"):
        raise ValueError(f"shrink must be 'never', 'end' or 'update', got {shrink!r}")


def targeted_groups(coupling: Coupling | None, weights: Mapping[str, Tensor]) -> dict[str, Group]:
    """The coupled groups that make the output channels of ``weights``, each under the first such weight.

    Raises:
        ShrinkError: If the network's coupling is not known.
        TargetError: If no targeted channel can go.
    """
    if coupling is None:
        raise ShrinkError("channels need the network's coupling, which is not known yet")
    groups: dict[str, Group] = {}
    for name in weights:
        group = coupling.group_of(name, 0)
        if group is not None and not any(group is known for known in groups.values()):
            groups[name] = group
    if not groups:
        frozen = f"; operators without a rule: {sorted(coupling.unknown)}" if coupling.unknown else ""
        raise TargetError(f"none of the {len(weights)} targeted layers has channels that can be removed{frozen}")
    return groups


def activations_as_read(
    coupling: Coupling, reads: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean activation of each output channel of ``weights``, as the layers that read it see it.

    Args:
        coupling: The network's coupled channels.
        reads: ``[in]`` mean absolute input of every reading layer, by the name of its weight.
        weights: The targeted weights.

    Returns:
        ``[out]`` per weight; a weight whose channels no measured layer reads is left out.
    """
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        group = coupling.group_of(name, 0)
        if group is None:
            continue
        readers = [member for member in group.members if member.role == 1 and member.name in reads]
        seen = [reads[member.name][member.index].mean(1) for member in readers]
        if seen:
            value = torch.stack(seen).mean(0)
            spread = value.new_zeros(weight.shape[0])
            for member in group.members:
                if member.name == name and member.role == 0:
                    spread[member.index] = value.unsqueeze(1).expand(member.index.shape)
            found[name] = spread
    return found


def channel_scores(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """Importance of each channel of a group: the mean over the layers that make or read it, each scaled to a mean of 1.

    A channel falls with the weights that make it and with those that read it, so both count. What a criterion
    says of whole output channels, such as a mean activation, counts for the channels that a layer makes.

    Args:
        group: Coupled channels.
        scores: What a criterion said of the layers, by the name of their weight: as the weight, or ``[channels]``.

    Returns:
        ``[size]``.

    Raises:
        TargetError: If no layer makes the channels, and scores of those that read them are of what these write.
    """
    scored = [(member, scores[member.name].to(torch.float32)) for member in group.members if member.name in scores]
    importances = []
    for member, score in scored:
        if member.role < min(score.dim(), 2):
            per_position = score if score.dim() == 1 else score.transpose(0, member.role).flatten(1).sum(1)
            importance = per_position[member.index.to(per_position.device)].mean(1)
            tiny = torch.finfo(importance.dtype).tiny
            importances.append(importance / importance.mean().clamp_min(tiny))
    if not importances:
        raise TargetError(
            f"{scored[0][0].name} reads the channels of {group.name}, but its scores are of what it writes: "
            "choose a criterion that scores single weights"
        )
    return torch.stack(importances).mean(0)


def channel_masks(
    groups: Mapping[str, Group], keep: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks over every weight that makes or reads a channel.

    Args:
        groups: Coupled channels by pool.
        keep: Boolean, ``[size]``, of each pool.
        weights: Every parameter of the network by name.
    """
    masks: dict[str, Tensor] = {}
    for name, group in groups.items():
        gone = ~keep[name]
        for member in group.members:
            if member.name in weights:
                weight = weights[member.name]
                mask = masks.setdefault(member.name, torch.ones_like(weight, dtype=torch.bool))
                positions = member.index[gone.to(member.index.device)].flatten()
                mask.index_fill_(member.role, positions.to(mask.device), 0)
    return masks


def round_up(keep: Tensor, scores: Tensor, multiple: int) -> Tensor:
    """Bring back the best channels until a multiple, and at least one channel, is kept."""
    alive = int((scores > -torch.inf).sum())
    wanted = min(max(-(-int(keep.sum()) // multiple) * multiple, 1), alive)
    best = scores.argsort(descending=True, stable=True)[:wanted]
    rounded = torch.zeros_like(keep)
    rounded[best] = True
    return rounded
