"""Elastic width: a layer keeps the first of the channels that it was built with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.sliced import Slicing, sliced_forward
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.layer_kinds import LAYERS
from lightning_optim.surgery.select import Targets, submodule

if TYPE_CHECKING:
    from lightning_optim.graph.coupling import Group


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticWidth(SearchDimension):
    """Elastic width: each target keeps its first ``k`` output channels (Yu et al., 2019; arXiv:1812.08928, section 3).

    Whatever is coupled to them (norms, the next layer's inputs, the other side of a residual sum) follows;
    targets that are coupled to each other are one decision.

    Args:
        targets: Convolutions and linear layers.
        fractions: Shares of the channels to choose from, in ``(0, 1]``, ascending; the last is 1.
        divisor: Channel counts are rounded to a multiple of it, as far as the layer has that many; at least 1.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> ElasticWidth(targets=Targets(), fractions=(0.25, 1.0)).counts(64)
        (16, 64)
    """

    adds_modules: ClassVar[bool] = False
    slices_weights: ClassVar[bool] = True

    targets: Targets
    fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
    divisor: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", tuple(float(fraction) for fraction in self.fractions))
        rises = all(low < high for low, high in itertools.pairwise(self.fractions))
        if not self.fractions or not rises or self.fractions[0] <= 0.0 or self.fractions[-1] != 1.0:
            raise ValueError(f"fractions must ascend within (0, 1] and end with 1, got {list(self.fractions)}")
        if self.divisor < 1:
            raise ValueError(f"divisor must be at least 1, got {self.divisor}")

    def counts(self, size: int) -> tuple[int, ...]:
        """Channel counts that a layer of ``size`` channels may have; equal counts are merged."""
        rounded = (max(1, round(fraction * size / self.divisor)) * self.divisor for fraction in self.fractions[:-1])
        return (*sorted({count for count in rounded if count < size}), size)

    @override
    def attach(self, site: Site) -> list[Decision]:
        chosen = self.targets.select(site.root, LAYERS)
        groups = {name: site.coupling.group_of(site.inner_name(f"{name}.weight")) for name in chosen}
        frozen = [name for name, group in groups.items() if group is None]
        if frozen:
            unknown = ", ".join(site.coupling.unknown) or "none"
            advice = "add them to targets.exclude" if len(frozen) < len(groups) else _others(site)
            raise TargetError(
                f"the channels of {', '.join(map(repr, frozen))} cannot vary: they reach the network's output or an "
                f"operator without a coupling rule (met here: {unknown}); {advice}"
            )
        # Layers that are coupled share a group: one decision, named after the first of them.
        leaders = {id(group): (name, group) for name, group in reversed(groups.items()) if group is not None}
        return [self._attach_group(name, group, site) for name, group in reversed(leaders.values())]

    def _attach_group(self, leader: str, group: Group, site: Site) -> Decision:
        name, counts = f"{leader}:width", self.counts(group.size)
        owners = _owners(site.root)
        found = [(member, owners[site.outer_name(member.name)]) for member in group.members]
        found += [(member, [_attribute(site, member.name)]) for member in group.counts]
        for member, places in found:
            for owner, tensor in places:
                slicing = Slicing(decision=name, tensor=tensor, dim=member.dim, index=member.index, counts=counts)
                sliced_forward(owner).add(slicing)
        return Decision(name=name, options=tuple(map(str, counts)), default=len(counts) - 1)


def _others(site: Site) -> str:
    """What to do where no target can vary."""
    prefix = f"{site.network}." if site.network else ""
    names = [name for name in Targets().select(site.root, LAYERS) if f"{name}.".startswith(prefix)]
    free = [name for name in names if site.coupling.group_of(site.inner_name(f"{name}.weight")) is not None]
    if not free:
        return "no layer of this network can vary: leave this entry out of the space, or search a larger network"
    more = f" or {len(free) - 3} more" if len(free) > 3 else ""
    return f"name others in targets.include, such as {', '.join(map(repr, free[:3]))}{more}"


def _attribute(site: Site, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = site.outer_name(name).rpartition(".")
    return submodule(site.root, path), attribute


def _owners(root: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    # A tied tensor has several owners, and each of them runs with it.
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    named: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in root.named_modules(remove_duplicate=False):
        tensors = {**vars(module)["_parameters"], **vars(module)["_buffers"]}
        for local, tensor in tensors.items():
            if tensor is None:
                continue
            owners = places.setdefault(id(tensor), [])
            if (module, local) not in owners:
                owners.append((module, local))
            named[f"{prefix}.{local}" if prefix else local] = owners
    return named
