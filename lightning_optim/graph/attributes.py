"""Integers that count channels: a view writes ``self.num_heads``, and a cut must change it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightning_optim.graph.labels import Axes, Axis, Labels
from lightning_optim.graph.operators import TAKE_LENGTHS, operator_name
from lightning_optim.graph.rules.base import OperatorCall
from lightning_optim.surgery.select import plain_name

_COUNTER = re.compile(
    r"(^|_)(heads?|groups?|dims?|width|channels?|chans|chs|features|planes|filters|size|n?hidden|embed|model|nf|nhead)(_|$)"
)
_OTHER = re.compile(
    r"kernel|window|patch|image|img|grid|layer|stride|pad|dilation|vocab|position|pool|block|seq|max|min"
)
_WIDTH_OF_ONE = re.compile(r"head_(dim|size|width)|dim_(per_)?head|per_head|head_channels")
_WIDTHS = frozenset({"embed_dim", "kdim", "vdim"})


def note_counts(
    call: OperatorCall, axes: Any, attributes: Mapping[str, Mapping[str, int]], counts: dict[str, Axis]
) -> None:
    """Remember which attributes of the calling module say how long a labelled axis of a view is.

    Args:
        call: The operator call; anything but a view is passed over.
        axes: Labels of its output, or of each output.
        attributes: Integer attributes of every module, by its plain name.
        counts: Labels by the attribute's full name; filled here.
    """
    if operator_name(call.node.target) not in TAKE_LENGTHS or not axes:
        return
    owner = calling_module(call.node.meta)
    own = attributes.get(owner, {})
    # The parts of a split may be told by what is split: ``x.split(self.channels // 2)``.
    labelled = [*axes[0], *call.axes(call.first())] if isinstance(axes[0], list) else axes
    for axis in labelled:
        if axis is not None:
            for name in counters(own, len(axis)):
                _note(call.labels, f"{owner}.{name}".lstrip("."), axis, counts)


def note_widths(
    labels: Labels,
    tensors: Mapping[str, Axes],
    attributes: Mapping[str, Mapping[str, int]],
    counts: dict[str, Axis],
) -> None:
    """Remember widths that a module compares its inputs with, by the parameters that it holds itself.

    Args:
        labels: The union-find.
        tensors: Labels of each parameter and buffer.
        attributes: Integer attributes of every module, by its plain name.
        counts: Labels by the attribute's full name; filled here.
    """
    for name, axes in tensors.items():
        owner = name.rpartition(".")[0]
        own = attributes.get(owner, {})
        for width in sorted(_WIDTHS & own.keys()):
            for axis in axes:
                if axis is not None and len(axis) == own[width]:
                    _note(labels, f"{owner}.{width}".lstrip("."), axis, counts)


def counters(attributes: Mapping[str, int], length: int) -> list[str]:
    """Names of attributes that may count an axis; the width of one head is among them only if no other name is.

    Example:
        >>> counters({"num_heads": 4, "head_dim": 4, "window_size": 4, "depth": 4}, 4)
        ['num_heads']
    """
    found = [
        name
        for name, value in attributes.items()
        if value == length and _COUNTER.search(name) and not _OTHER.search(name)
    ]
    return [name for name in found if not _WIDTH_OF_ONE.search(name)] or found


def _note(labels: Labels, name: str, axis: Axis, counts: dict[str, Axis]) -> None:
    """Note that an attribute counts an axis; axes that one attribute counts are tied."""
    if name in counts:
        labels.unite(counts[name], axis)
    counts.setdefault(name, axis)


def calling_modules(meta: Mapping[str, Any]) -> list[str]:
    """Return the plain names of all modules below the root in whose forward a node was recorded, outer ones first."""
    names = (str(entry[0]) for entry in (meta.get("nn_module_stack") or {}).values())
    # A module's second call is named ``layer@1``.
    found = [name.removeprefix("L['self']").removeprefix("L__self__").strip(".").split("@")[0] for name in names]
    return [plain_name(name) for name in found if name]


def calling_module(meta: Mapping[str, Any]) -> str:
    """Return the plain name of the innermost module in whose forward a node was recorded; the root's is empty."""
    return next(reversed(calling_modules(meta)), "")
