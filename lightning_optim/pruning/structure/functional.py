"""Arithmetic of structures: patterns within the weight of a layer, and pools that an allocation sees as one."""

# O output channels, I input channels, K positions of a kernel

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def lowest_of_each(scores: Tensor, drop: int, out_of: int) -> Tensor:
    """Mark the lowest ``drop`` of every ``out_of`` consecutive entries along dimension 1 with ``True``.

    Of equal entries the first ones are marked.

    Args:
        scores: ``[O, I, ...]``, ``I`` a multiple of ``out_of``.
        drop: How many of each group, at most ``out_of``.
        out_of: Length of a group.

    Returns:
        Boolean, shaped as ``scores``.

    Example:
        >>> lowest_of_each(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), drop=2, out_of=4)
        tensor([[False,  True,  True, False]])
    """
    along = scores.movedim(1, -1)
    groups = along.reshape(*along.shape[:-1], -1, out_of)
    order = groups.argsort(dim=-1, stable=True)
    marked = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :drop], True)
    return marked.reshape(along.shape).movedim(-1, 1)


def must_stay(scores: Tensor, stays: Tensor) -> Tensor:
    """Scores with ``inf`` where an entry must stay, so that no allocation drops it; NaN is left, and found later.

    Args:
        scores: Any shape.
        stays: Boolean, shaped as ``scores``.

    Returns:
        The scores, ``inf`` where ``stays``.

    Example:
        >>> must_stay(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
        tensor([inf, 2.])
    """
    return scores.masked_fill(stays & ~scores.isnan(), torch.inf)


def spare_best(scores: Tensor, gone: Tensor) -> Tensor:
    """Let one entry stay: the best of those that have not gone, or of all if all have.

    Args:
        scores: ``[n]``.
        gone: Boolean, ``[n]``.

    Example:
        >>> spare_best(torch.tensor([1.0, 9.0, 2.0]), torch.tensor([False, True, False]))
        tensor([1., 9., inf])
    """
    if not len(scores):
        return scores
    candidates = scores if bool(gone.all()) else scores.masked_fill(gone, -torch.inf)
    stays = torch.zeros_like(gone)
    stays[candidates.argmax()] = True
    return must_stay(scores, stays)


def with_those_that_stay(keep: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring back what must stay, wherever an allocation that ran out of other entries has dropped it.

    Example:
        >>> with_those_that_stay({"a": torch.tensor([False, False])}, {"a": torch.tensor([1.0, torch.inf])})
        {'a': tensor([False,  True])}
    """
    return {name: mask | scores[name].isposinf() for name, mask in keep.items()}


def block_means(scores: Tensor, rows: int, columns: int) -> Tensor:
    """Mean over blocks of output by input channels, with all kernel positions; blocks at the edge may be smaller.

    Args:
        scores: ``[O, I, ...]``.
        rows: Output channels of a block.
        columns: Input channels of a block.

    Returns:
        ``[ceil(O / rows), ceil(I / columns)]``, float32.

    Example:
        >>> block_means(torch.arange(6.0).view(2, 3), rows=2, columns=2)
        tensor([[2.0000, 3.5000]])
    """
    flat = scores.to(torch.float32).flatten(2).mean(2) if scores.dim() > 2 else scores.to(torch.float32)
    height, width = -(-flat.shape[0] // rows), -(-flat.shape[1] // columns)
    places = block_of_each(flat, rows, columns).flatten()
    sums = flat.new_zeros(height * width).index_add_(0, places, flat.flatten())
    return (sums / torch.bincount(places, minlength=height * width)).view(height, width)


def block_of_each(weight: Tensor, rows: int, columns: int) -> Tensor:
    """Number of the block that each pair of an output and an input channel lies in.

    Args:
        weight: ``[O, I, ...]``.
        rows: Output channels of a block.
        columns: Input channels of a block.

    Returns:
        ``[O, I]``; blocks count along the input first.

    Example:
        >>> block_of_each(torch.zeros(2, 3), rows=1, columns=2)
        tensor([[0, 0, 1],
                [2, 2, 3]])
    """
    width = -(-weight.shape[1] // columns)
    row = torch.arange(weight.shape[0], device=weight.device).div(rows, rounding_mode="floor")
    column = torch.arange(weight.shape[1], device=weight.device).div(columns, rounding_mode="floor")
    return row.unsqueeze(1) * width + column


def spread(scores: Tensor, weight: Tensor) -> Tensor:
    """Give every weight of a neuron the neuron's score, where there is one score per neuron.

    Args:
        scores: Shaped as ``weight``, or ``[O]``.
        weight: ``[O, I, ...]``.

    Example:
        >>> spread(torch.tensor([1.0, 2.0]), torch.zeros(2, 2))
        tensor([[1., 1.],
                [2., 2.]])
    """
    if scores.shape == weight.shape:
        return scores
    return scores.reshape(-1, *[1] * (weight.dim() - 1)).expand_as(weight)


def allocate_jointly(
    scores: Mapping[str, Tensor],
    competing: Sequence[tuple[str, ...]],
    allocate: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Masks by pool, from an allocation to which pools that compete are one.

    Args:
        scores: Scores by pool; along dimension 0 where pools compete.
        competing: Names of the pools that are one, each pool once.
        allocate: Scores by pool -> boolean masks by pool.

    Example:
        >>> scores = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
        >>> allocate_jointly(scores, [("a", "b")], lambda joint: {pool: score > 1.5 for pool, score in joint.items()})
        {'a': tensor([False]), 'b': tensor([True])}
    """
    joint = {joint_name(names): _joined([scores[name] for name in names]) for names in competing}
    keep = allocate(joint)
    masks: dict[str, Tensor] = {}
    for names in competing:
        lengths = [len(scores[name]) for name in names]
        masks |= zip(names, torch.split(keep[joint_name(names)], lengths), strict=True)
    return masks


def joint_name(names: Sequence[str]) -> str:
    """What messages and tables call pools that are one."""
    return ", ".join(names)


def _joined(scores: list[Tensor]) -> Tensor:
    return scores[0] if len(scores) == 1 else torch.cat(scores)
