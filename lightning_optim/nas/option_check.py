"""Check of every option: the network runs with it, and returns what it did, shape by shape."""

from __future__ import annotations

import torch
from torch import nn

from lightning_optim.errors import TargetError, reason_of
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.forward.choice import output_layout
from lightning_optim.nas.forward.switchable import activate
from lightning_optim.nas.space.base import Site
from lightning_optim.search.decision import Decision
from lightning_optim.search.space import SearchSpace
from lightning_optim.surgery.copies import eval_copy
from lightning_optim.surgery.select import submodule


def check_every_option(site: Site, space: SearchSpace) -> None:
    """Run each option of each decision on the example, others at their defaults as far as it then matters.

    Raises:
        TargetError: Naming the first option with which the network does not run, or returns something else.
    """
    network = eval_copy(submodule(site.root, site.network))
    needed = _layout(network, site, space.default)
    for decision in space.decisions:
        base = _active_with(space, decision)
        for option, text in enumerate(decision.options):
            try:
                came = _layout(network, site, {**base, decision.name: option})
            except (RuntimeError, ValueError, TypeError) as error:
                raise TargetError(
                    f"the network does not run with {decision.name!r} at {text!r}: {reason_of(error)}; is a shape "
                    "written into its code? Exclude the module from targets"
                ) from error
            if came != needed:
                raise TargetError(f"with {decision.name!r} at {text!r} the network returns {came}, not {needed}")


def _active_with(space: SearchSpace, decision: Decision) -> Architecture:
    """The architecture of the defaults, but for what must be chosen for a decision to matter."""
    known, found = {each.name: each for each in space.decisions}, space.default
    waiting = [decision]
    while waiting:
        for condition in waiting.pop().conditions:
            if found[condition.decision] not in condition.options:
                found[condition.decision] = condition.options[0]
            waiting.append(known[condition.decision])
    return found


def _layout(network: nn.Module, site: Site, architecture: Architecture) -> list[str]:
    activate(network, architecture)
    with torch.no_grad():
        return output_layout(network(*site.args, **site.kwargs))
