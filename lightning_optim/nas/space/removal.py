"""Removal of skipped blocks from their container, tried before it is relied on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_optim.nas.forward.skipped import SkippedForward
from lightning_optim.nas.forward.switchable import activate, switchable_forwards
from lightning_optim.nas.space.base import Site
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.select import submodule
from lightning_optim.surgery.torch_private import pytree


def can_remove(site: Site, forwards: Sequence[SkippedForward]) -> bool:
    """Whether a model computes the same without skipped blocks in their container as with these skipped.

    Code may count the blocks, for example to drop the deeper ones more often: then they cannot go. The model is tried
    with as many of them skipped as may be, and as few, in evaluation and in training, on random numbers in the place
    of the example's.

    Args:
        site: The model.
        forwards: Attached to the blocks of one sequence that may be skipped, in their order.
    """
    network = submodule(site.root, site.network)
    blocks = [forward.owner for forward in forwards]
    container = next((parent for parent in network.modules() if blocks[-1] in vars(parent)["_modules"].values()), None)
    children = [] if container is None else list(vars(container)["_modules"].values())
    is_end = children[len(children) - len(blocks) :] == blocks
    if not isinstance(container, nn.Sequential) and not (isinstance(container, nn.ModuleList) and is_end):
        return False
    least = max(option for option in range(forwards[0].num_options) if forwards[-1].is_skipped_with(option))
    return all(_goes(network, forwards, option, site) for option in {0, least})


def _goes(network: nn.Module, forwards: Sequence[SkippedForward], option: int, site: Site) -> bool:
    skipping = copy_model(network)
    activate(skipping, dict.fromkeys(forwards[0].follows, option))
    shorter = copy_model(skipping)
    skipped = [forward for forward in switchable_forwards(shorter) if isinstance(forward, SkippedForward)]
    gone = {forward.owner for forward in skipped if forward.follows == forwards[0].follows and forward.skips}
    for module in [*shorter.modules()]:
        own = vars(module)["_modules"]
        for name in [name for name, child in own.items() if child in gone]:
            del own[name]
    return all(_is_same(skipping.train(mode), shorter.train(mode), site) for mode in (False, True))


def _is_same(skipping: nn.Module, shorter: nn.Module, site: Site) -> bool:
    try:
        expected = _outputs(skipping, site)
    except (RuntimeError, ValueError):
        return True  # such as batch norm in training, of a single sample
    try:
        found = _outputs(shorter, site)
    except Exception:  # whatever code may raise that looks for a block in vain
        return False
    pairs = zip(expected, found, strict=True)
    return len(expected) == len(found) and all(torch.equal(one, other) for one, other in pairs)


def _outputs(network: nn.Module, site: Site) -> list[Tensor]:
    def drawn(leaf: Any) -> Any:
        return torch.randn_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        args, kwargs = pytree.tree_map(drawn, (site.args, dict(site.kwargs)))
        return [leaf for leaf in pytree.tree_leaves(network(*args, **kwargs)) if isinstance(leaf, Tensor)]
