"""Permutations and copies: axes change their order, number or length, without arithmetic."""

from __future__ import annotations

from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.rules.base import OperatorCall, rule


@rule("permute", "permute_copy")
def permute(call: OperatorCall) -> Axes:
    """Reorder axes."""
    axes = call.axes(call["self"])
    return [axes[dim] for dim in call["dims"]]


@rule("transpose", "swapaxes", "swapdims", "transpose_copy")
def transpose(call: OperatorCall) -> Axes:
    """Swap two axes."""
    axes = call.axes(call.first())
    one, other = (call.get(*names) for names in (("dim0", "axis0"), ("dim1", "axis1")))
    axes[one], axes[other] = axes[other], axes[one]
    return axes


@rule("t", "numpy_T", "mT")
def swap_last(call: OperatorCall) -> Axes:
    """Swap the axes of a matrix."""
    axes = call.axes(call.first())
    return axes[:-2] + axes[-2:][::-1]


@rule("movedim", "moveaxis")
def move(call: OperatorCall) -> Axes:
    """Move axes, the others in their old order."""
    axes = call.axes(call["self"])
    source, target = (
        [dim % len(axes) for dim in (given if isinstance(given, list | tuple) else [given])]
        for given in (call["source"], call["destination"])
    )
    place = dict(zip(target, source, strict=True))
    others = iter(dim for dim in range(len(axes)) if dim not in source)
    return [axes[place[dim] if dim in place else next(others)] for dim in range(len(axes))]


@rule("expand")
def expand(call: OperatorCall) -> Axes:
    """New and lengthened axes are fixed."""
    axes, shape = call.axes(call["self"]), call.shape(call["self"])
    ahead = len(call.output) - len(axes)
    kept = [axis if shape[dim] == call.output[ahead + dim] else None for dim, axis in enumerate(axes)]
    return [None] * ahead + kept


@rule("repeat")
def tile(call: OperatorCall) -> Axes:
    """Tile labels along with what they name; a tiled fixed axis stays fixed."""
    axes: Axes = call.axes(call["self"])
    counts: list[int] = call["repeats"]
    ahead = len(counts) - len(axes)
    tiled: list[Axis | None] = []
    for axis, count in zip(axes, counts[ahead:], strict=True):
        tiled.append(axis if axis is None or count == 1 else axis[None].repeat(count, 0).reshape(-1))
    return [None] * ahead + tiled


@rule("roll", "flip", "cumsum", "constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad2d")
def touch(call: OperatorCall) -> Axes:
    """Freeze the axes along which positions are moved or added; the others pass."""
    axes, shape = call.axes(call["self"]), call.shape(call["self"])
    given = call.get("dims", "dim")
    named = given if isinstance(given, list | tuple) else [] if given is None else [given]
    padding = call.get("pad", "padding")
    touched = {dim % len(axes) for dim in named}
    if padding is not None:
        touched = {len(axes) - 1 - pair for pair in range(len(padding) // 2) if any(padding[2 * pair : 2 * pair + 2])}
    elif not touched:
        touched = set(range(len(axes)))
    touched |= {dim for dim in range(len(axes)) if shape[dim] != call.output[dim]}
    call.freeze(*(axes[dim] for dim in touched))
    return [None if dim in touched else axis for dim, axis in enumerate(axes)]
