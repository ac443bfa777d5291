"""Attention heads among the coupled channels."""

from __future__ import annotations

import numpy as np
from torch import fx

from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.graph.labels import Axis
from lightning_optim.graph.operators import OperatorKind, kind_of, operator_name


def attention_heads(coupling: Coupling) -> tuple[Group, ...]:
    """Return the groups whose channels are heads: axes that stand before the two of an attention's weights.

    Args:
        coupling: Coupled channels of a network.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_optim.graph import capture_network
        >>> from lightning_optim.graph import couple
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(2, (2, 2)), nn.Softmax(dim=-1), nn.Flatten(2))
        >>> attention_heads(couple(capture_network(net, (torch.ones(2, 3, 4),))))
        ()
    """
    propagation = coupling.propagation
    axes: list[Axis] = []
    for node in propagation.program.graph.nodes:
        if _attends(node):
            axes += [axis for axis in propagation.axes[node][:-2] if axis is not None]
    heads = set(propagation.labels.find(np.concatenate(axes)).tolist()) if axes else set()
    return tuple(group for group in coupling.groups if _label(coupling, group) in heads)


def _attends(node: fx.Node) -> bool:
    name = operator_name(node.target) if node.op == "call_function" else ""
    kind = kind_of(name)
    if kind is OperatorKind.SOFTMAX:
        return node.args[1] in (-1, len(node.meta["val"].shape) - 1)
    return kind is OperatorKind.ATTENTION


def _label(coupling: Coupling, group: Group) -> int:
    """The label of a group's first channel."""
    first = group.members[0]
    axis = coupling.propagation.tensors[first.name][first.dim]
    assert axis is not None
    return int(coupling.propagation.labels.find(axis[first.index[0, :1].numpy()])[0])
