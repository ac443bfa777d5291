"""Parameters that only training reads, such as a mask token: their channels are those of the stream they enter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lightning_optim.graph.labels import Axes, Axis, Labels


def tie_unused(labels: Labels, tensors: Mapping[str, Axes], unused: Iterable[str]) -> None:
    """Tie the last axis of a parameter that the graph does not read.

    It goes with the channels of that width in its own module, if these are the same wherever they lie; it stays
    alone otherwise.

    Args:
        labels: The union-find.
        tensors: Labels of each parameter and buffer.
        unused: Names of parameters that nothing in the graph reads.
    """
    names = set(unused)
    for name in names:
        axis = tensors[name][-1] if tensors[name] else None
        owner = name.rpartition(".")[0]
        if axis is not None:
            others = [tensors[other] for other in tensors if other.startswith(owner) and other not in names]
            streams = {labels.find(stream).tobytes() for stream in _free(labels, others, len(axis))}
            if len(streams) == 1:
                labels.unite(axis, np.frombuffer(streams.pop(), dtype=np.int64))


def _free(labels: Labels, tensors: Iterable[Axes], length: int) -> list[Axis]:
    """Axes of this length whose channels can go one by one."""
    return [
        axis
        for axes in tensors
        for axis in axes
        if axis is not None
        and len(axis) == length == len(np.unique(labels.find(axis)))
        and not labels.is_frozen(axis).any()
    ]
