"""Lengths of the axes of a graph, as functions of the channels of the pools that can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import fx

from lightning_optim.cost.prices import Pool, Width
from lightning_optim.graph.coupling import Coupling, Group
from lightning_optim.graph.labels import Axis


@final
class AxisWidths:
    """Lengths of a graph's axes, read from its channel labels; they depend on channel counts.

    Args:
        coupling: The network's coupling.
        pools: Groups whose channels may be removed, by the name of their pool. Every other axis has a fixed length.
    """

    def __init__(self, coupling: Coupling, pools: Mapping[str, Group]) -> None:
        self._propagation = coupling.propagation
        self.sizes = {name: group.size for name, group in pools.items()}
        self.pools = {name: Pool(group.size, self._uses(group)) for name, group in pools.items()}
        self._pool_of: dict[int, str] = {}
        for pool, group in pools.items():
            first = group.members[0]
            axis = self._propagation.tensors[first.name][first.dim]
            assert axis is not None
            roots = self._propagation.labels.find(axis[first.index[:, 0].numpy()])
            self._pool_of.update(dict.fromkeys(roots.tolist(), pool))

    def of_tensor(self, name: str, shape: tuple[int, ...]) -> tuple[Width, ...]:
        """Return the widths of a parameter or buffer; fixed ones if it takes no part in the graph."""
        axes = self._propagation.tensors.get(name, [None] * len(shape))
        return tuple(self._width(axis, length) for axis, length in zip(axes, shape, strict=True))

    def of_value(self, node: fx.Node) -> tuple[Width, ...]:
        """Return the widths of a tensor that an operator takes or gives."""
        shape = tuple(int(size) for size in node.meta["val"].shape)
        axes = self._propagation.axes.get(node)
        if axes is None or len(axes) != len(shape) or any(isinstance(axis, list) for axis in axes):
            axes = [None] * len(shape)
        return tuple(self._width(axis, length) for axis, length in zip(axes, shape, strict=True))

    def _uses(self, group: Group) -> int:
        return sum(len(self._propagation.tensors[member.name]) > 1 for member in group.members)

    def _width(self, axis: Axis | None, length: int) -> Width:
        if axis is None:
            return Width(float(length), {})
        counts: dict[str, int] = {}
        for root in self._propagation.labels.find(axis).tolist():
            pool = self._pool_of.get(root)
            if pool is not None:
                counts[pool] = counts.get(pool, 0) + 1
        parts = {pool: count / self.sizes[pool] for pool, count in counts.items()}
        return Width(float(length - sum(counts.values())), parts)


def is_tensor(value: object) -> bool:
    """Whether an operand of a graph is one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)
