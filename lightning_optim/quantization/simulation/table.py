"""Table of a placement, as plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from lightning_optim.quantization.simulation.operators import INTEGER_ROLES, WEIGHTED_ROLES, Role
from lightning_optim.quantization.simulation.plan import UNROUNDED, Plan
from lightning_optim.quantization.simulation.ranges import Ranges

BitsOf = Callable[[str], tuple[int | None, int | None]]
_FLOAT_BITS = 32
_UNLISTED_ROLES = frozenset({Role.MOVE, Role.WRITE})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Row of the table: one operator of a network.

    Args:
        key: Names the operator: module path, torch function, and the number of the call if it is not the first.
        kind: Its role in a quantized network, such as ``"convolution"``, or its name if it has none.
        computes: ``"integer"`` or ``"float"``.
        bits: Widths of its weight and of its output, such as ``"w4 a8"``; empty if it has neither.
        note: The folded batch norm, or why it computes in floating point.
        low: Smallest value of its output's range; ``None`` if the output has no quantizer of its own.
        high: Largest value.
        macs: Multiply-accumulates in the recorded batch.
    """

    key: str
    kind: str
    computes: str
    bits: str
    note: str
    low: float | None
    high: float | None
    macs: int


def placement_rows(plan: Plan, ranges: Ranges, bits_of: BitsOf | None = None) -> list[Row]:
    """Return a row for every operator that computes, in the order of the forward pass.

    Args:
        plan: The operators.
        ranges: The ranges of their outputs.
        bits_of: Key of an operator -> widths of its weight and its output.
    """
    rows = []
    for key, operator in plan.operators.items():
        if operator.role in _UNLISTED_ROLES or (operator.role is Role.NORM and operator.path in plan.norms.values()):
            continue
        low, high = ranges.range_of(key) if ranges.has(key) else (None, None)
        is_float = bool(operator.note) or operator.role not in INTEGER_ROLES | {Role.RELU}
        weight, output = (None, None) if bits_of is None else bits_of(key)
        is_unrounded = output == _FLOAT_BITS and operator.is_integer
        norm = f"with {plan.norms[key]}" if key in plan.norms else ""
        note = operator.note or ", ".join(filter(None, (norm, UNROUNDED if is_unrounded else "")))
        computes = "float" if is_float or is_unrounded else "integer"
        kind = operator.name if operator.role is Role.OTHER else operator.role.value
        widths = [f"w{weight}"] if weight is not None and operator.role in WEIGHTED_ROLES and not is_float else []
        widths += [f"a{output}"] if output is not None and low is not None else []
        bits = " ".join(widths)
        rows.append(
            Row(key=key, kind=kind, computes=computes, bits=bits, note=note, low=low, high=high, macs=operator.macs)
        )
    return rows


def integer_share(rows: Sequence[Row]) -> float:
    """Return the share of the multiply-accumulates that runs in integers, in ``[0, 1]``; 1 if there are none at all."""
    total = sum(row.macs for row in rows)
    return sum(row.macs for row in rows if row.computes == "integer") / total if total else 1.0


def say_share(share: float) -> str:
    """Share as a percentage that is never rounded up.

    Example:
        >>> say_share(1.0), say_share(0.89999), say_share(0.0)
        ('100 %', '89.9 %', '0 %')
    """
    return f"{math.floor(1000.0 * share + 1e-9) / 10.0:g} %"


def placement_table(plan: Plan, ranges: Ranges, bits_of: BitsOf | None = None) -> str:
    """Return the placement as a table of plain text, and the share of the multiply-accumulates (MACs) in integers."""
    rows = placement_rows(plan, ranges, bits_of)
    total = sum(row.macs for row in rows)
    lines = [("operator", "kind", "computes", "bits", "range", "MACs", "note")]
    for row in rows:
        span = "" if row.low is None or row.high is None else f"[{row.low:.4g}, {row.high:.4g}]"
        macs = say_share(row.macs / total) if row.macs else ""
        lines.append((row.key, row.kind, row.computes, row.bits, span, macs, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, *([f"MACs in integers: {say_share(integer_share(rows))}"] if total else [])])
