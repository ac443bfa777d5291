"""Coupled channels as decisions: a group of them keeps its first ones, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from lightning_optim.errors import CaptureError, TargetError
from lightning_optim.nas.forward.sliced import Slicing, sliced_forward
from lightning_optim.nas.space.base import Site
from lightning_optim.search.decision import Decision
from lightning_optim.surgery.layer_kinds import LAYERS
from lightning_optim.surgery.select import Targets, named_modules, submodule

if TYPE_CHECKING:
    from lightning_optim.graph.coupling import Coupling, Group


def attach_widths(
    site: Site, groups: Mapping[str, Group | None], kind: str, counts: Callable[[int], tuple[int, ...]]
) -> list[Decision]:
    """Let groups vary, each named after the first of the layers whose channels they are.

    Args:
        site: The model.
        groups: The channels of each layer, by its name; ``None`` where they cannot vary.
        kind: What is decided, for the name of the decision.
        counts: Channel counts that a group of so many channels may have, the last of them all.

    Raises:
        TargetError: If the channels of a layer cannot vary.
    """
    frozen = [name for name, group in groups.items() if group is None]
    if frozen:
        unknown = ", ".join(site.coupling.unknown) or "none"
        advice = "add them to targets.exclude" if len(frozen) < len(groups) else _others(site)
        raise TargetError(
            f"the channels of {', '.join(map(repr, frozen))} cannot vary: they reach the network's output or an "
            f"operator without a coupling rule (met here: {unknown}); {advice}"
        )
    # Layers that are coupled share a group: one decision, named after the first of them.
    leaders = {id(group): (name, group) for name, group in [*groups.items()][::-1] if group is not None}
    return [
        slice_group(site, group, f"{name}:{kind}", counts(group.size)) for name, group in reversed(leaders.values())
    ]


def slice_group(site: Site, group: Group, name: str, counts: Sequence[int]) -> Decision:
    """Let every tensor, and every integer that counts, follow one decision about a group.

    Args:
        site: The model.
        group: The channels.
        name: Name of the decision.
        counts: Channels kept, per option; the last is all of them.

    Raises:
        TargetError: If another decision has these channels already.
    """
    owners = _owners(site.root)
    found = [(member, owners[site.outer_name(member.name)]) for member in group.members]
    found += [(member, [_attribute(site, member.name)]) for member in group.counts]
    for member, places in found:
        for owner, tensor in places:
            slicing = Slicing(decision=name, tensor=tensor, dim=member.dim, index=member.index, counts=tuple(counts))
            sliced_forward(owner).add(slicing)
    return Decision(name=name, options=tuple(map(str, counts)), default=len(counts) - 1)


def groups_within(site: Site, targets: Targets, find: Callable[[Coupling], Sequence[Group]], what: str) -> list[Group]:
    """Return the groups that lie as a whole inside a target, in their order.

    Where the network cannot be captured, each target is looked at by itself: what lies inside it is coupled inside it.

    Args:
        site: The model.
        targets: Where to look; with ``"*"`` and no type, in the whole model too.
        find: Finds groups among coupled channels.
        what: What these groups are, for the message.

    Raises:
        TargetError: If a glob of ``targets.include`` names no module with such a group inside.
        CaptureError: If neither the network nor a target can be captured.
    """
    chosen = {glob: _chosen_by(glob, targets, site) for glob in targets.include}
    everywhere = Targets(exclude=targets.exclude).select(site.root, (nn.Module,))
    left_out = set(named_modules(site.root)) - set(everywhere)
    looks = _looks(site, [name for names in chosen.values() for name in names])
    groups = [_moved(group, prefix) for prefix, coupling in looks.items() for group in find(coupling)]
    found: dict[int, Group] = {}
    for glob, names in chosen.items():
        inside = [group for group in groups if _is_within(_homes(site, group), names, left_out)]
        if not inside:
            raise TargetError(
                f"{glob!r} matches no module with {what} inside that can vary{_reasons(looks, names, site)}"
            )
        found |= {id(group): group for group in inside}
    return [group for group in groups if id(group) in found]


def _chosen_by(glob: str, targets: Targets, site: Site) -> list[str]:
    one = Targets(include=(glob,), exclude=targets.exclude, types=targets.types)
    return [*one.select(site.root, (nn.Module,)), *([""] if glob == "*" and not targets.types else [])]


def _looks(site: Site, names: Sequence[str]) -> dict[str, Coupling]:
    """Coupled channels of the network; or, if it cannot be captured, of each outermost target, by its inner name."""
    try:
        return {"": site.coupling}
    except CaptureError:
        outermost = [name for name in dict.fromkeys(names) if not any(_is_inside(name, other) for other in names)]
        if "" in outermost:
            raise
        return {site.inner_name(name): coupling for name, coupling in site.couplings_of(outermost).items()}


def _is_inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def _moved(group: Group, prefix: str) -> Group:
    """A group whose tensors are named from the network, and not from a part of it."""
    if not prefix:
        return group
    members, counts = (
        tuple(replace(member, name=f"{prefix}.{member.name}") for member in each)
        for each in (group.members, group.counts)
    )
    return replace(group, members=members, counts=counts)


def _homes(site: Site, group: Group) -> set[str]:
    return {site.outer_name(member.name).rpartition(".")[0] for member in group.members}


def _is_within(homes: Collection[str], chosen: Collection[str], left_out: Collection[str]) -> bool:
    inside = any(all(f"{home}.".startswith(f"{target}." if target else "") for home in homes) for target in chosen)
    return inside and not any(home in left_out for home in homes)


def _reasons(looks: Mapping[str, Coupling], targets: Collection[str], site: Site) -> str:
    """Why channels inside targets cannot vary, as far as it is known."""
    whole = {
        site.outer_name(f"{prefix}.{name}".lstrip(".")): reason
        for prefix, coupling in looks.items()
        for name, reason in coupling.whole.items()
    }
    reasons = [f"{name!r} must stay whole: {reason}" for name, reason in whole.items()
               if any(name.startswith(f"{target}." if target else "") for target in targets)]  # fmt: skip
    unknown = dict.fromkeys(name for coupling in looks.values() for name in coupling.unknown)
    reasons = [*reasons[:2], *([f"no coupling rule for {', '.join(unknown)}"] if unknown else [])]
    return "".join(f"; {reason}" for reason in reasons) or "; name other modules in targets.include"


def _others(site: Site) -> str:
    """What to do where no target can vary."""
    prefix = f"{site.network}." if site.network else ""
    layers = [name for name, module in named_modules(site.root).items() if isinstance(module, LAYERS)]
    names = [name for name in layers if f"{name}.".startswith(prefix)]
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
