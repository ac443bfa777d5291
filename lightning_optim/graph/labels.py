"""Channel labels: a union-find over integers, in whole arrays."""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt

Axis = npt.NDArray[np.int64]
"""One label per position along an axis."""
Axes = list[Axis | None]
"""One axis of labels per dimension of a tensor; ``None`` where its length is fixed."""


@final
class Labels:
    """Union-find of channel labels, with the classes that must not be touched.

    Example:
        >>> labels = Labels()
        >>> left, right = labels.fresh(3), labels.fresh(3)
        >>> labels.unite(left, right)
        >>> labels.freeze(right[:1])
        >>> labels.find(right).tolist(), labels.is_frozen(left).tolist()
        ([0, 1, 2], [True, False, False])
    """

    def __init__(self) -> None:
        self._parent: Axis = np.empty(0, dtype=np.int64)
        self._count = 0
        self._frozen: list[Axis] = []
        self._normalized: list[Axis] = []

    def fresh(self, size: int) -> Axis:
        """Return ``size`` labels, each in a class of its own."""
        begin, self._count = self._count, self._count + size
        if self._count > len(self._parent):
            grown = np.arange(max(1024, 2 * self._count), dtype=np.int64)
            grown[:begin] = self._parent[:begin]
            self._parent = grown
        return np.arange(begin, self._count, dtype=np.int64)

    def find(self, axis: Axis) -> Axis:
        """Return the representative of every label: the smallest of its class."""
        root = self._parent[axis]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[axis] = root
        return root

    def unite(self, first: Axis, second: Axis) -> None:
        """Make one class of each pair at the same position.

        Args:
            first: Labels, shape ``[n]``.
            second: Labels, shape ``[n]``.
        """
        if len(first) != len(second):
            raise ValueError(f"axes to unite must be equally long, got {len(first)} and {len(second)}")
        while True:
            one, other = self.find(first), self.find(second)
            differ = one != other
            if not differ.any():
                return
            # A root hangs below a smaller one only, so that no cycle can form; of several candidates the smallest wins.
            high, low = np.maximum(one, other)[differ], np.minimum(one, other)[differ]
            np.minimum.at(self._parent, high, low)

    def unite_all(self, table: Axis) -> None:
        """Make one class of each column.

        Args:
            table: Labels, shape ``[k, n]``.
        """
        for row in table[1:]:
            self.unite(table[0], row)

    def freeze(self, axis: Axis | None) -> None:
        """Forbid the removal of these labels' classes; ``None`` is frozen by nature."""
        if axis is not None:
            self._frozen.append(axis.reshape(-1))

    def mark_normalized(self, axis: Axis | None) -> None:
        """Note that a statistic is taken over these labels."""
        if axis is not None:
            self._normalized.append(axis.reshape(-1))

    def is_frozen(self, axis: Axis) -> npt.NDArray[np.bool_]:
        """Tell for every label whether its class is frozen."""
        return self._is_among(axis, self._frozen)

    def is_normalized(self, axis: Axis) -> npt.NDArray[np.bool_]:
        """Tell for every label whether a statistic is taken over its class."""
        return self._is_among(axis, self._normalized)

    def _is_among(self, axis: Axis, chosen: list[Axis]) -> npt.NDArray[np.bool_]:
        flags = np.zeros(self._count, dtype=np.bool_)
        if chosen:
            flags[self.find(np.concatenate(chosen))] = True
        return flags[self.find(axis)]
