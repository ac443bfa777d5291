"""Missing ranges: which activations lack one, why, and how they get it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_optim.quantization.simulation.plan import Plan
from lightning_optim.quantization.simulation.ranges import Ranges

_WAY_OUT = "let calibrate() complete what is missing; what was learned stays"


@final
class MissingRanges:
    """Ranges of which only those that are missing are observed: those that are known stay as they are.

    Args:
        ranges: The ranges.
    """

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def observe(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Widen this batch's range of an activation that has none yet, and return the tensor's own."""
        return None if self._ranges.has(key) else self._ranges.observe(key, tensor)

    def measure(self, key: str, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what ``observe`` would return."""
        return None if self._ranges.has(key) else self._ranges.measure(key, tensor)

    def qparams(self, key: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return scale and zero point of an activation as scalars on a device, or ``None`` if it has no range yet."""
        return self._ranges.qparams(key, device)


def why_no_range(key: str, plan: Plan, ranges: Ranges, noticed: Collection[str] = ()) -> str:
    """Return why an activation has no range, and what to do.

    Args:
        key: Names the activation.
        plan: The operators that are known.
        ranges: The ranges that are known.
        noticed: Activations without a range that evaluation has come across.

    Example:
        >>> from lightning_optim.quantization import Affine, MinMax
        >>> why_no_range("conv:conv2d", Plan(), Ranges(Affine(), MinMax())).partition(":")[0]
        'no training batch ran it, and no calibration'
    """
    operator = plan.operators.get(key.partition("<")[0])
    if key in ranges.keys:
        return (
            "it held NaN or infinities, or no value at all, in every batch that was observed: see that its input and "
            "its weights are finite"
        )
    if operator is None or (key not in plan.rounded and "<" not in key):
        if key in noticed:
            return f"evaluation alone ran it, no training batch did: {_WAY_OUT}"
        return f"no training batch ran it, and no calibration: train through this branch, or {_WAY_OUT}"
    if operator.note:
        return f"it was recorded in floating point ({operator.note}): see targets, and calibrate anew"
    return f"a single batch ran it, which showed the operator alone, and the range takes another: {_WAY_OUT}"


def notice_of(keys: Sequence[str]) -> str:
    """Return what is said about activations without a range when evaluation comes across them."""
    others = f" and {len(keys) - 3} others" if len(keys) > 3 else ""
    names = ", ".join(repr(key) for key in keys[:3])
    return (
        f"no training batch has shown the range of {names}{others}, so that they compute in floating point, and an "
        f"export would refuse them: {_WAY_OUT}"
    )
