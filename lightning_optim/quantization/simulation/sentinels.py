"""Sentinels: values that stand for no number, such as what a mask adds where nothing may be read."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SENTINEL = 512.0
"""Smallest magnitude that a sentinel may have: masks add -1e4, -65504, -1e9 or an infinity."""

_GAP = 16.0  # an integer of 8 bits would leave 4 of them to all values below the gap
_GAP_EXPONENT = 4  # log2 of the gap


def sentinel_bound(
    x: Tensor, least: float = LEAST_SENTINEL, *, ends: tuple[Tensor, Tensor] | None = None
) -> float | None:
    """Return the magnitude from which on the values of a tensor stand apart from all others.

    Such values are at least ``least`` in magnitude, and no value of the tensor lies in the sixteenfold below them. So
    they are recognized whatever put them there: a mask, ``masked_fill``, ``where`` or padding. NaN is none of them.

    Args:
        x: Values; any shape.
        least: Smallest magnitude that counts.
        ends: The smallest and the largest value, where they are known: most tensors are told by these.

    Returns:
        The magnitude, infinity if infinities alone stand apart, or ``None`` if no value does. A tensor of nothing else
        has none either: then they are its values.

    Example:
        >>> sentinel_bound(torch.tensor([0.5, -3.0, -1e9])), sentinel_bound(torch.tensor([0.5, 700.0, 90.0]))
        (1000000000.0, None)
        >>> sentinel_bound(torch.tensor([0.5, -torch.inf]))
        inf
    """
    if ends is not None and all(abs(float(end)) < least for end in ends):
        return None
    magnitudes = x.detach().abs().flatten()
    has_infinities = bool(magnitudes.isinf().any())
    finite = magnitudes[magnitudes.isfinite()].double()
    if not finite.numel():
        return None
    edge = _edge_of_gap(finite, least)
    return edge if edge is not None else torch.inf if has_infinities else None


def _edge_of_gap(finite: Tensor, least: float) -> float | None:
    """Smallest value of at least ``least`` below which nothing lies in a sixteenfold, if something lies below that."""
    if float(finite.amax()) < least:
        return None
    lowest, exponents = float(finite.amin()), torch.frexp(finite[finite > 0]).exponent
    least_exponent = int(exponents.amin())
    counts = torch.bincount(exponents - least_exponent)
    populated: list[int] = (counts.nonzero().flatten() + least_exponent).tolist()
    for lower, upper in zip([populated[0] - _GAP_EXPONENT, *populated], populated, strict=False):
        if upper - lower < _GAP_EXPONENT:
            continue
        above = finite >= 2.0 ** (upper - 1)
        edge = float(finite[above].amin())
        rest = finite[~above]
        if edge >= least and lowest < edge and edge >= _GAP * (float(rest.amax()) if rest.numel() else 0.0):
            return edge
    return None
