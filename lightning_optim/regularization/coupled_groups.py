"""Coupled channels that targeted layers make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import nn

from lightning_optim.errors import TargetError
from lightning_optim.graph.capture import capture_network
from lightning_optim.graph.coupling import Coupling, couple
from lightning_optim.graph.group import Group
from lightning_optim.surgery.layer_kinds import input_first_weights
from lightning_optim.surgery.select import plain_name
from lightning_optim.surgery.torch_private import uncompiled


def named_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a network by plain name, below any wrapper of ``torch.compile``."""
    return {plain_name(name): parameter for name, parameter in uncompiled(network).named_parameters()}


@final
class CoupledGroups:
    """Coupled channels of one network.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> coupled = CoupledGroups()
        >>> coupled.knows(net)
        False
        >>> coupled.couple(net, (torch.ones(2, 3),), {})
        >>> [group.name for group in coupled.of(net, ["0.weight", "2.weight"])]
        ['0.weight']
    """

    def __init__(self) -> None:
        self._shapes: dict[str, torch.Size] = {}
        self._coupling: Coupling | None = None

    def knows(self, network: nn.Module) -> bool:
        """Whether the network's channels are known, and its shapes are those that they were found for."""
        return self._coupling is not None and self._shapes == _shapes(network)

    def couple(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find which channels go together.

        Args:
            network: The network.
            args: Positional inputs that it is called with.
            kwargs: Keyword inputs.

        Raises:
            CaptureError: If it cannot be captured as a graph.
        """
        self._coupling = couple(capture_network(uncompiled(network), args, kwargs))
        self._shapes = _shapes(network)

    def of(self, network: nn.Module, weights: Iterable[str]) -> tuple[Group, ...]:
        """Return the groups of the output channels of weights, each once.

        Args:
            network: The network.
            weights: Plain names of weights in it.

        Raises:
            TargetError: If no output channel of them can go.
        """
        assert self._coupling is not None
        turned = input_first_weights(uncompiled(network))
        names = [*weights]
        found = [self._coupling.group_of(name, 1 if name in turned else 0) for name in names]
        groups = {id(group): group for group in found if group is not None}
        if not groups:
            unknown = self._coupling.unknown
            reason = f"; operators without a rule: {sorted(unknown)}" if unknown else ""
            raise TargetError(f"none of the {len(names)} targeted layers has channels that can be removed{reason}")
        return tuple(groups.values())


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in named_parameters(network).items()}
