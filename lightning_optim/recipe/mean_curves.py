"""Curves of any number of steps in a bounded number of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from lightning_optim.report.loss_curves import LossCurves

_Point = dict[str, tuple[float, int]]  # curve -> sum of its values and their number


@final
class MeanCurves:
    """Curves of values over steps, each point the mean over a stretch of them.

    A stretch is one step at first; whenever there are too many points, two become one.

    Args:
        max_points: Most points of a curve, an even number.

    Example:
        >>> curves = MeanCurves(max_points=2)
        >>> for value in (1.0, 3.0, 5.0):
        ...     curves.add({"task": value})
        >>> curves.read()
        LossCurves(batches=(2, 3), values={'task': (2.0, 5.0)})
    """

    def __init__(self, max_points: int = 256) -> None:
        self._max_points = max_points
        self._points: list[_Point] = []
        self._stretch, self._num_steps = 1, 0

    def add(self, values: Mapping[str, float]) -> None:
        """Add the next step; it may lack values that others have."""
        if self._num_steps % self._stretch == 0:
            if len(self._points) == self._max_points:
                self._points = [*map(_joined, self._points[::2], self._points[1::2])]
                self._stretch *= 2
            self._points.append({})
        self._points[-1] = _joined(self._points[-1], {name: (value, 1) for name, value in values.items()})
        self._num_steps += 1

    def read(self) -> LossCurves:
        """Return the curves so far."""
        ends = [min((place + 1) * self._stretch, self._num_steps) for place in range(len(self._points))]
        names = dict.fromkeys(name for point in self._points for name in point)
        return LossCurves(batches=ends, values={name: [_mean(point, name) for point in self._points] for name in names})

    def state_dict(self) -> dict[str, Any]:
        """Return all as primitives."""
        return {"points": [*map(dict, self._points)], "stretch": self._stretch, "num_steps": self._num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._points = [*map(dict, state["points"])]
        self._stretch, self._num_steps = state["stretch"], state["num_steps"]


def _joined(*points: _Point) -> _Point:
    names = dict.fromkeys(name for point in points for name in point)
    return {name: _sum([point[name] for point in points if name in point]) for name in names}


def _sum(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    return sum(total for total, _ in parts), sum(number for _, number in parts)


def _mean(point: _Point, name: str) -> float | None:
    total, number = point.get(name, (0.0, 0))
    return total / number if number else None
