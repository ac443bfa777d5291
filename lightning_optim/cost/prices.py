"""Prices: the cost of a network as a function of its channel counts, in plain numbers that are cheap to evaluate."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from typing_extensions import override

from lightning_optim.cost.curve import Curve

Channels = Mapping[str, int]
"""Number of channels of each pool."""


@final
@dataclass(frozen=True, slots=True)
class Width:
    """Length of one axis of a tensor: positions that are always there, and some for each channel of a pool.

    Args:
        fixed: Positions that belong to no pool.
        parts: Pool -> positions along the axis per channel.

    Example:
        >>> Width(2.0, {"conv.weight": 4.0}).at({"conv.weight": 3})
        14.0
    """

    fixed: float
    parts: Mapping[str, float]

    def at(self, channels: Channels) -> float:
        """Length at these channel counts."""
        return self.fixed + sum(share * channels[pool] for pool, share in self.parts.items())


class Term(ABC):
    """Summand of a price."""

    name: str
    widths: tuple[Width, ...]

    @abstractmethod
    def at(self, channels: Channels) -> float:
        """Value at these channel counts."""

    @abstractmethod
    def times(self, factor: float) -> Term:
        """The same term, ``factor`` times as expensive."""

    @property
    def pools(self) -> set[str]:
        """Pools that the term depends on."""
        return {pool for width in self.widths for pool in width.parts}


@final
@dataclass(frozen=True, slots=True)
class Product(Term):
    """Product of a coefficient and the lengths of some axes: parameters, multiply-accumulates.

    Args:
        name: Name of the tensor or operator that costs this.
        coefficient: Cost at lengths of one.
        widths: The axes.

    Example:
        >>> Product("conv", 9.0, (Width(0.0, {"a": 1.0}), Width(3.0, {}))).at({"a": 2})
        54.0
    """

    name: str
    coefficient: float
    widths: tuple[Width, ...]

    @override
    def at(self, channels: Channels) -> float:
        return self.coefficient * math.prod(width.at(channels) for width in self.widths)

    @override
    def times(self, factor: float) -> Product:
        return Product(self.name, self.coefficient * factor, self.widths)


@final
@dataclass(frozen=True, slots=True)
class Grid(Term):
    """Grid of measurements at some lengths of one to three axes, interpolated linearly along each.

    Beyond the outermost points the last slope goes on, but never below zero.

    Args:
        name: Name of the tensor or operator that costs this.
        widths: The axes.
        points: For each axis, ascending lengths, two or more; one where the axis has one length only.
        values: A measurement for each combination of points, the last axis fastest.

    Example:
        >>> Grid("conv", (Width(0.0, {"a": 1.0}),), ((4.0, 8.0),), (1.0, 3.0)).at({"a": 6})
        2.0
    """

    name: str
    widths: tuple[Width, ...]
    points: tuple[tuple[float, ...], ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if math.prod(map(len, self.points)) != len(self.values) or len(self.points) != len(self.widths):
            raise ValueError(f"{self.name}: {len(self.values)} measurements do not fill the table's points")

    @override
    def at(self, channels: Channels) -> float:
        corners = [
            _neighbours(width.at(channels), points) for width, points in zip(self.widths, self.points, strict=True)
        ]
        total = 0.0
        for corner in itertools.product(*corners):
            position = 0
            for (index, _), points in zip(corner, self.points, strict=True):
                position = position * len(points) + index
            total += math.prod(share for _, share in corner) * self.values[position]
        return max(total, 0.0)

    @override
    def times(self, factor: float) -> Grid:
        return Grid(self.name, self.widths, self.points, tuple(factor * value for value in self.values))


def _neighbours(length: float, points: Sequence[float]) -> list[tuple[int, float]]:
    """The two points around a length, with their shares in it."""
    if len(points) == 1:
        return [(0, 1.0)]
    left = min(max(sum(point <= length for point in points) - 1, 0), len(points) - 2)
    share = (length - points[left]) / (points[left + 1] - points[left])
    return [(left, 1.0 - share), (left + 1, share)]


@final
@dataclass(frozen=True, slots=True)
class Pool:
    """Pool of channels that can be removed one by one.

    Args:
        size: Channels of the network that was priced.
        uses: Weight matrices and kernels that make or read them.
    """

    size: int
    uses: int = 1


@final
@dataclass(frozen=True, slots=True)
class Prices:
    """Prices: the cost of a network for any channel counts.

    Args:
        unit: What is counted: ``"parameters"``, ``"MACs"``, ``"bytes"`` or ``"seconds"``.
        pools: What can lose channels, by name.
        terms: What is summed up.
        curve: Turns the sum into the cost, where the parts do not simply add up to the whole.

    Example:
        >>> prices = Prices("MACs", {"a": Pool(4)}, (Product("conv", 9.0, (Width(0.0, {"a": 1.0}),)),))
        >>> prices({"a": 2}), prices.full
        (18.0, 36.0)
    """

    unit: str
    pools: Mapping[str, Pool]
    terms: tuple[Term, ...]
    curve: Curve = Curve()  # noqa: RUF009  # frozen

    def __call__(self, channels: Channels) -> float:
        """Cost at these channel counts; pools that are left out keep all channels."""
        return self.curve.at(self.total(channels))

    def total(self, channels: Channels) -> float:
        """The sum of the terms, before the curve."""
        present = {**self.sizes, **channels}
        return sum(term.at(present) for term in self.terms)

    @property
    def sizes(self) -> dict[str, int]:
        """Pool -> channels of the network that was priced."""
        return {name: pool.size for name, pool in self.pools.items()}

    @property
    def full(self) -> float:
        """Cost of the network as it was priced."""
        return self({})

    def of_pool(self, pool: str) -> tuple[Term, ...]:
        """The terms that depend on a pool."""
        return tuple(term for term in self.terms if pool in term.pools)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain primitives."""
        pools = {name: [pool.size, pool.uses] for name, pool in self.pools.items()}
        curve = [list(self.curve.points), list(self.curve.values)]
        return {"unit": self.unit, "pools": pools, "terms": [_plain(term) for term in self.terms], "curve": curve}


def prices_from_state(state: Mapping[str, Any]) -> Prices:
    """Return the prices that a ``Prices.state_dict`` was taken from.

    Example:
        >>> prices = Prices("MACs", {"a": Pool(4)}, (Product("conv", 9.0, (Width(0.0, {"a": 1.0}),)),))
        >>> prices_from_state(prices.state_dict()) == prices
        True
    """
    pools = {name: Pool(size, uses) for name, (size, uses) in state["pools"].items()}
    points, values = state["curve"]
    curve = Curve(tuple(points), tuple(values))
    return Prices(state["unit"], pools, tuple(_term(entry) for entry in state["terms"]), curve)


def _plain(term: Term) -> dict[str, Any]:
    widths = [[width.fixed, dict(width.parts)] for width in term.widths]
    if isinstance(term, Product):
        return {"name": term.name, "widths": widths, "coefficient": term.coefficient}
    assert isinstance(term, Grid)
    points = [list(axis) for axis in term.points]
    return {"name": term.name, "widths": widths, "points": points, "values": list(term.values)}


def _term(state: Mapping[str, Any]) -> Term:
    widths = tuple(Width(fixed, dict(parts)) for fixed, parts in state["widths"])
    if "coefficient" in state:
        return Product(state["name"], state["coefficient"], widths)
    return Grid(state["name"], widths, tuple(map(tuple, state["points"])), tuple(state["values"]))
