"""Removal of skipped blocks from their container, tried before it is relied on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_optim.errors import TargetError, reason_of
from lightning_optim.nas.forward.skipped import SkippedForward
from lightning_optim.nas.forward.switchable import activate, put_in_place, strip, switchable_forwards
from lightning_optim.nas.space.base import Site
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.torch_private import pytree


def try_removal(site: Site, forwards: Sequence[SkippedForward]) -> None:
    """Let skipped blocks leave their container where the model computes the same without them as with these skipped.

    Code may count the blocks, for example to drop the deeper ones more often: then they leave something in their place.
    The model is tried with as many of them skipped as may be, and as few, in evaluation and in training, on random
    numbers in the place of the example's.

    Args:
        site: The model.
        forwards: Attached to the blocks of one sequence that may be skipped, in their order.

    Raises:
        TargetError: If the model computes the same neither way.
    """
    network = submodule(site.root, site.network)
    ways = (True, False) if _may_leave(network, [forward.owner for forward in forwards]) else (False,)
    least = max(option for option in range(forwards[0].num_options) if forwards[-1].is_skipped_with(option))
    for is_removable in ways:
        for forward in forwards:
            forward.is_removable = is_removable
        found = [_same_or_reason(network, forwards, option, site) for option in sorted({0, least})]
        if not any(found):
            return
    (decision,) = forwards[0].follows
    raise TargetError(
        f"the network does not run without the blocks that {decision!r} skips: {next(filter(None, found))}; does its "
        "code read them without a call? Give larger depths, or leave the sequence out of targets"
    )


def _may_leave(network: nn.Module, blocks: Sequence[nn.Module]) -> bool:
    """Whether a container can do without blocks: a list must keep its numbers."""
    container = next((parent for parent in network.modules() if blocks[-1] in vars(parent)["_modules"].values()), None)
    children = [] if container is None else list(vars(container)["_modules"].values())
    is_end = children[len(children) - len(blocks) :] == blocks
    return isinstance(container, nn.Sequential) or (isinstance(container, nn.ModuleList) and is_end)


def _same_or_reason(network: nn.Module, forwards: Sequence[SkippedForward], option: int, site: Site) -> str:
    """Why the model does not compute the same with blocks skipped as without them; empty if it does."""
    skipping = copy_model(network)
    activate(skipping, dict.fromkeys(forwards[0].follows, option))
    shorter = copy_model(skipping)
    ours = [forward for forward in switchable_forwards(shorter) if forward.follows == forwards[0].follows]
    replaced = {forward.owner: forward.extracted() for forward in ours}
    strip(shorter, keep=[forward for forward in switchable_forwards(shorter) if forward not in ours])
    put_in_place(shorter, {owner: plain for owner, plain in replaced.items() if plain is not owner})
    reasons = (_difference(skipping.train(mode), shorter.train(mode), site) for mode in (False, True))
    return next(filter(None, reasons), "")


def _difference(skipping: nn.Module, shorter: nn.Module, site: Site) -> str:
    try:
        expected = _outputs(skipping, site)
    except (RuntimeError, ValueError):
        return ""  # such as batch norm in training, of a single sample
    try:
        found = _outputs(shorter, site)
    except Exception as error:  # whatever code may raise that looks for a block in vain
        return reason_of(error)
    pairs = zip(expected, found, strict=False)
    is_same = len(expected) == len(found) and all(torch.equal(one, other) for one, other in pairs)
    return "" if is_same else "it returns something else"


def _outputs(network: nn.Module, site: Site) -> list[Tensor]:
    def drawn(leaf: Any) -> Any:
        return torch.randn_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        args, kwargs = pytree.tree_map(drawn, (site.args, dict(site.kwargs)))
        return [leaf for leaf in pytree.tree_leaves(network(*args, **kwargs)) if isinstance(leaf, Tensor)]
