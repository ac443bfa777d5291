"""Views that keep every element in its place in memory: reshape and its relatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.rules.attention import feeds_attention, is_taken_apart
from lightning_optim.graph.rules.base import OperatorCall, rule


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "view_copy",
    "view_as",
    "reshape_as",
)
def reshape(call: OperatorCall) -> Axes:
    """Follow axes through a merge or a split."""
    source = call.node.args[0]
    return reshape_axes(call, call.axes(source), call.shape(source), call.output)


def reshape_axes(call: OperatorCall, axes: Axes, old: tuple[int, ...], new: tuple[int, ...]) -> Axes:
    """Labels of a row-major reshape.

    Args:
        call: The operator call.
        axes: Labels before.
        old: Shape before.
        new: Shape after.
    """
    result: Axes = [None] * len(new)
    for before, after in factor(old, new):
        tracked = [dim for dim in before if axes[dim] is not None]
        if not tracked:
            continue
        # A merged position would go if either of its labels went, which one label cannot say.
        call.freeze(*(axes[dim] for dim in tracked[1:]))
        flat = _spread(axes, before, old, tracked[0])
        if len(after) == 1:
            result[after[0]] = flat
        else:
            dim, axis = _split(call, flat.reshape([new[dim] for dim in after]))
            if dim is not None:
                result[after[dim]] = axis
    return result


def factor(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the smallest runs of axes with equal products; axes of length one are left out.

    Example:
        >>> factor((2, 12, 5), (2, 3, 1, 4, 5))
        [([0], [0]), ([1], [1, 3]), ([2], [4])]
    """
    left = [dim for dim, size in enumerate(old) if size != 1]
    right = [dim for dim, size in enumerate(new) if size != 1]
    pairs: list[tuple[list[int], list[int]]] = []
    while left and right:
        before, after = [left.pop(0)], [right.pop(0)]
        while (small := _product(old, before)) != (large := _product(new, after)):
            if small < large:
                before.append(left.pop(0))
            else:
                after.append(right.pop(0))
        pairs.append((before, after))
    return pairs


def _product(shape: Sequence[int], dims: list[int]) -> int:
    return int(np.prod([shape[dim] for dim in dims]))


def _spread(axes: Axes, before: list[int], old: tuple[int, ...], dim: int) -> Axis:
    shape = [old[other] for other in before]
    column = [-1 if other == dim else 1 for other in before]
    axis = axes[dim]
    assert axis is not None
    return np.broadcast_to(axis.reshape(column), shape).reshape(-1)


def _split(call: OperatorCall, table: Axis) -> tuple[int | None, Axis]:
    """Choose the one axis of a split that goes on carrying channels; the others become fixed."""
    roots = call.labels.find(table)
    for dim in range(table.ndim):
        rows = np.moveaxis(roots, dim, 0).reshape(table.shape[dim], -1)
        if (rows == rows[:, :1]).all():
            return dim, np.moveaxis(table, dim, 0).reshape(table.shape[dim], -1)[:, 0].copy()
    chosen = _channel_axis(call, table.shape)
    if chosen is None:
        call.freeze(table)
        return None, table.reshape(-1)
    rows = np.moveaxis(table, chosen, 0).reshape(table.shape[chosen], -1)
    call.labels.unite_all(rows.T)
    return chosen, rows[:, 0].copy()


def _channel_axis(call: OperatorCall, shape: tuple[int, ...]) -> int | None:
    """Before attention whole heads go: the first axis, or the one after (or before) query, key and value.

    Elsewhere the longer of two axes goes.
    """
    if feeds_attention(call.node):
        if len(shape) == 2:
            return int(is_taken_apart(call.node, shape[0]))
        return {3: 1}.get(shape[0], 0 if shape[1] == 3 else None) if len(shape) == 3 else None
    return int(np.argmax(shape)) if len(shape) == 2 else None
