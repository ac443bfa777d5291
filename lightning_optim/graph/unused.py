"""Unused parameters: those that only training reads, such as a mask token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from lightning_optim.graph.labels import Axes, Labels


def tie_unused(labels: Labels, tensors: Mapping[str, Axes], unused: Iterable[str]) -> None:
    """Tie the last axis of a parameter that the graph does not read, and freeze the others.

    The parameter goes with the channels of that width in its own module that lie in most places, twice as many as any
    others do: such a token enters the residual stream, which runs through all layers. If there are none, it stays.

    Args:
        labels: The union-find.
        tensors: Labels of each parameter and buffer.
        unused: Names of parameters that nothing in the graph reads.
    """
    names = set(unused)
    for name in sorted(names):
        axes = tensors[name]
        axis = axes[-1] if axes else None
        for other in axes[:-1]:
            labels.freeze(other)
        owner = name.rpartition(".")[0]
        if axis is not None:
            others = [tensors[other] for other in tensors if other.startswith(owner) and other not in names]
            (stream, most), (_, next_most) = _streams(labels, others, len(axis))
            if most > 2 * next_most:
                labels.unite(axis, np.frombuffer(stream, dtype=np.int64))
            else:
                labels.freeze(axis)


def _streams(labels: Labels, tensors: Iterable[Axes], length: int) -> list[tuple[bytes, int]]:
    """The two most frequent classes along axes of this length, with their number."""
    axes = [axis for axes in tensors for axis in axes if axis is not None and len(axis) == length]
    found = Counter(labels.find(axis).tobytes() for axis in axes)
    return [*found.most_common(2), (b"", 0), (b"", 0)][:2]
