"""Monotone piecewise linear curve from rough values, such as predictions, to better ones, such as measurements."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

_APART = 0.02  # of the largest rough value: the step between points nearer than that is more noise than slope


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """Monotone piecewise linear curve; before the first and after the last point, that point's ratio holds.

    Args:
        points: Rough values, ascending, above zero; none leaves every value as it is.
        values: A better value for each, ascending, above zero.

    Raises:
        ValueError: If they do not ascend, or are not as many.

    Example:
        >>> curve = Curve((1.0, 3.0), (2.0, 3.0))
        >>> curve.at(2.0), curve.inverse(2.5), curve.at(6.0)
        (2.5, 2.0, 6.0)
    """

    points: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.points) != len(self.values) or not _rises(self.points) or not _rises(self.values):
            raise ValueError(
                f"a curve needs as many values as points, both ascending from above zero, got {self.points} "
                f"and {self.values}"
            )

    def at(self, rough: float) -> float:
        """Return the better value for a rough one."""
        return _read_off(self.points, self.values, rough)

    def inverse(self, value: float) -> float:
        """Return the rough value for a better one."""
        return _read_off(self.values, self.points, value)

    def through(self, rough: float, value: float) -> Curve:
        """Return this curve led through one more point; points that clash with it are left out.

        Args:
            rough: Above zero.
            value: Above zero.

        Example:
            >>> Curve((1.0, 2.0, 4.0), (2.0, 3.0, 4.0)).through(2.5, 2.5)
            Curve(points=(1.0, 2.5, 4.0), values=(2.0, 2.5, 4.0))
        """
        known = list(zip(self.points, self.values, strict=True))
        apart = _APART * max((rough, *self.points))
        below = [(left, low) for left, low in known if left <= rough - apart and low < value]
        above = [(right, high) for right, high in known if right >= rough + apart and high > value]
        points, values = zip(*below, (rough, value), *above, strict=True)
        return Curve(points, values)


def curve_through(pairs: Iterable[tuple[float, float]]) -> Curve:
    """Isotonic regression: the monotone curve nearest to pairs of rough and better values.

    Neighbours that would make it fall are replaced by their mean until none is left (pool adjacent violators,
    Barlow et al., 1972), as are points so near to one another that the step between them is more noise than slope.

    Args:
        pairs: Rough and better values; pairs that are not above zero are left out.

    Example:
        >>> curve_through([(1.0, 2.0), (2.0, 5.0), (3.0, 4.0), (4.0, 6.0)])
        Curve(points=(1.0, 2.5, 4.0), values=(2.0, 4.5, 6.0))
    """
    blocks: list[list[tuple[float, float]]] = []
    ordered = sorted(pair for pair in pairs if min(pair) > 0.0)
    for pair in ordered:
        blocks.append([pair])
        while len(blocks) > 1 and _clash(_mean(blocks[-2]), _mean(blocks[-1]), _APART * ordered[-1][0]):
            last = blocks.pop()
            blocks[-1] += last
    means = [_mean(block) for block in blocks]
    return Curve(tuple(rough for rough, _ in means), tuple(value for _, value in means))


def _clash(left: tuple[float, float], right: tuple[float, float], apart: float) -> bool:
    return right[1] <= left[1] or right[0] - left[0] < apart


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(rough for rough, _ in pairs) / len(pairs), sum(value for _, value in pairs) / len(pairs)


def _rises(numbers: Sequence[float]) -> bool:
    return all(left < right for left, right in itertools.pairwise((0.0, *numbers)))


def _read_off(points: Sequence[float], values: Sequence[float], place: float) -> float:
    if not points:
        return place
    if place <= points[0]:
        return place * values[0] / points[0]
    if place >= points[-1]:
        return place * values[-1] / points[-1]
    right = next(index for index, point in enumerate(points) if point > place)
    share = (place - points[right - 1]) / (points[right] - points[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])
