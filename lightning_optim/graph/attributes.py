"""Integers that count channels: a view writes ``self.num_heads``, and a cut must change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_optim.graph.capture import ATTRIBUTES
from lightning_optim.graph.labels import Axis
from lightning_optim.graph.rules.base import Call, operator_name
from lightning_optim.surgery.select import plain_name

_VIEWS = frozenset({"view", "reshape", "_unsafe_view", "unflatten", "split", "chunk"})
_COUNTERS = frozenset(
    {"num_heads", "n_heads", "heads", "nhead", "n_head", "num_attention_heads", "num_key_value_heads", "num_kv_heads"}
    | {"all_head_size", "inner_dim", "attn_dim", "attention_head_dim", "split_size", "groups", "hidden_channels"}
)


def note_counts(call: Call, axes: Any, meta: Mapping[str, Any], counts: dict[str, Axis]) -> None:
    """Remember which attribute of the calling module says how long a labelled axis of a view is.

    Args:
        call: The operator call; anything but a view is passed over.
        axes: Labels of its output.
        meta: The graph's metadata, with the attributes of every module.
        counts: Labels by the attribute's full name; filled here.
    """
    if operator_name(call.node.target) not in _VIEWS or not axes or isinstance(axes[0], list):
        return
    owner = calling_module(call.node.meta)
    attributes = meta.get(ATTRIBUTES, {}).get(owner, {})
    for axis in axes:
        if axis is None:
            continue
        for name in _COUNTERS & attributes.keys():
            if attributes[name] == len(axis):
                _note(call, f"{owner}.{name}".lstrip("."), axis, counts)


def _note(call: Call, name: str, axis: Axis, counts: dict[str, Axis]) -> None:
    """One attribute that counts two axes holds them together."""
    if name in counts:
        call.labels.unite(counts[name], axis)
    counts.setdefault(name, axis)


def calling_module(meta: Mapping[str, Any]) -> str:
    """Return the plain name of the module in whose forward a node was recorded."""
    stack = list((meta.get("nn_module_stack") or {"": ("", None)}).values())
    name = str(stack[-1][0]).removeprefix("L['self']").removeprefix("L__self__").strip(".")
    return plain_name(name)
