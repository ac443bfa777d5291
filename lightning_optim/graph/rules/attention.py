"""Attention: heads are the units that go."""

from __future__ import annotations

from torch import fx

from lightning_optim.graph.labels import Axes, Axis
from lightning_optim.graph.operators import END_ATTENTION, MIX_ACTIVATIONS, REORDER, operator_name
from lightning_optim.graph.rules.base import OperatorCall, rule


def feeds_attention(node: fx.Node) -> bool:
    """Whether a value meets another activation in a product before it meets a weight."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        for user in waiting.pop().users:
            name = operator_name(user.target) if user.op == "call_function" else ""
            if name in MIX_ACTIVATIONS:
                return True
            if user not in seen and name not in END_ATTENTION:
                seen.add(user)
                waiting.append(user)
    return False


def is_taken_apart(node: fx.Node, length: int) -> bool:
    """Whether a view's axis of this length holds query, key and value, which are then read one by one."""
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            name = operator_name(user.target) if user.op == "call_function" else ""
            if name in ("select", "unbind"):
                source: fx.Node = user.args[0]  # type: ignore[assignment]  # both take the tensor first
                dim = user.args[1] if len(user.args) > 1 else 0
                return bool(source.meta["val"].shape[dim] == length) and length in (2, 3)
            if name in REORDER and user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


@rule("scaled_dot_product_attention")
def attend(call: OperatorCall) -> Axes:
    """Tie the heads of query, key and value; keys must stay, and so must the width that sets the scale.

    With ``enable_gqa`` a key's head goes with all of its queries' heads.
    """
    query, key, value = (call.axes(call[name]) for name in ("query", "key", "value"))
    call.freeze(key[-2], value[-2])
    width = call.join(query[-1], key[-1])
    if call["scale"] is None:
        call.freeze(width)
    heads: Axes = []
    for dim in range(len(query) - 2):
        heads.append(_tie_heads(call, dim, (query, key, value)))
    _tie_mask(call, heads)
    return [*heads, query[-2], value[-1]]


def _tie_heads(call: OperatorCall, dim: int, operands: tuple[Axes, Axes, Axes]) -> Axis | None:
    """Axes of ``operands`` at ``dim``, repeated where one head serves several queries."""
    size = call.output[dim]
    axes: list[Axis | None] = []
    for operand in operands:
        axis = operand[dim]
        axes.append(axis if axis is None else axis.repeat(size // len(axis)))
    return call.join(*axes)


def _tie_mask(call: OperatorCall, heads: Axes) -> None:
    mask, shape = call.axes(call["attn_mask"]), call.shape(call["attn_mask"])
    call.freeze(*mask[-2:])
    for dim in range(len(mask) - 2):
        own = dim + len(heads) + 2 - len(mask)
        if shape[dim] > 1:
            heads[own] = call.join(heads[own], mask[dim])
