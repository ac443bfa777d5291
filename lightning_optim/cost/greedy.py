"""Greedy choice of channel counts: the most importance for a given cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from lightning_optim.cost.prices import Prices

AllowedCounts = list[int]
"""Channel counts that a pool may have, ascending."""


def most_important(
    importance: Mapping[str, Sequence[float]], allowed_counts: Mapping[str, AllowedCounts], prices: Prices, limit: float
) -> dict[str, int]:
    """Choose how many channels each pool keeps: the most importance for at most ``limit``.

    Greedy: the step that loses the least importance per cost saved is taken again and again, its price read anew each
    time, since channels share operators. At the end, what still fits comes back, and pairs of pools trade channels
    as long as that helps.

    Args:
        importance: By pool, importance of its best 0, 1, 2, ... channels.
        allowed_counts: By pool, the counts that are allowed; the last is where the search begins.
        prices: Cost for any counts; pools that are not named in ``allowed_counts`` keep all channels.
        limit: What may be spent.

    Returns:
        Pool -> channels that stay. Over the limit only if the lowest counts are.

    Example:
        A channel of ``a`` costs 10 and one of ``b`` 1, so 22 in all; 12 may be spent. The second channel of ``a`` loses
        an importance of 1 for 10 saved, that of ``b`` loses 1 for 1 saved: the first is removed.

        >>> from lightning_optim.cost.prices import Pool, Product, Width
        >>> terms = tuple(Product(pool, cost, (Width(0.0, {pool: 1.0}),)) for pool, cost in (("a", 10.0), ("b", 1.0)))
        >>> prices = Prices("MACs", {"a": Pool(2), "b": Pool(2)}, terms)
        >>> importance = {"a": [0.0, 3.0, 4.0], "b": [0.0, 3.0, 4.0]}
        >>> most_important(importance, {"a": [1, 2], "b": [1, 2]}, prices, limit=12.0)
        {'a': 1, 'b': 2}
    """
    search = _GreedySearch(importance, allowed_counts, prices, prices.curve.inverse(limit))
    search.descend()
    search.fill()
    while search.trade():
        search.fill()
    return search.channels


@final
class _GreedySearch:
    """Search by single steps: the place of each pool among its allowed counts, and what that costs."""

    def __init__(
        self,
        importance: Mapping[str, Sequence[float]],
        allowed_counts: Mapping[str, AllowedCounts],
        prices: Prices,
        limit: float,
    ) -> None:
        self._importance, self._allowed, self._limit = importance, allowed_counts, limit
        self._step = {pool: len(counts) - 1 for pool, counts in allowed_counts.items()}
        self._terms = {pool: prices.of_pool(pool) for pool in allowed_counts}
        self._present = {**prices.sizes, **self.channels}
        self._neighbours = {
            pool: {other for term in terms for other in term.pools if other in allowed_counts}
            for pool, terms in self._terms.items()
        }
        self._spent = prices.total(self._present)  # a step of one pool changes its own terms only

    @property
    def channels(self) -> dict[str, int]:
        return {pool: counts[self._step[pool]] for pool, counts in self._allowed.items()}

    def descend(self) -> None:
        """Take the cheapest loss again and again until the limit is kept."""
        offers = {pool: self._offer(pool) for pool in self._allowed}
        while self._spent > self._limit:
            pool = min(offers, key=lambda name: offers[name][0])
            loss, step = offers[pool]
            if loss == float("inf"):
                return
            self._move(pool, step)
            for neighbour in self._neighbours[pool]:
                offers[neighbour] = self._offer(neighbour)

    def fill(self) -> None:
        """Bring back, one step at a time, the most important channels that still fit."""
        while True:
            gains = [
                (self._gain(pool, self._step[pool] + 1), pool)
                for pool, counts in self._allowed.items()
                if self._step[pool] + 1 < len(counts)
                and self._spent + self._change(pool, self._step[pool] + 1) <= self._limit
            ]
            best = max(gains, default=(0.0, ""))
            if best[0] <= 0.0:
                return
            self._move(best[1], self._step[best[1]] + 1)

    def trade(self) -> bool:
        """Take one step down in a pool for steps up in another, once, if that keeps more importance."""
        for giver in self._allowed:
            if self._step[giver] == 0:
                continue
            loss = -self._gain(giver, self._step[giver] - 1)
            self._move(giver, self._step[giver] - 1)
            for taker, counts in self._allowed.items():
                step = self._step[taker] + 1
                while taker != giver and step < len(counts) and self._gain(taker, step) <= loss:
                    step += 1
                if taker != giver and step < len(counts) and self._spent + self._change(taker, step) <= self._limit:
                    self._move(taker, step)
                    return True
            self._move(giver, self._step[giver] + 1)
        return False

    def _offer(self, pool: str) -> tuple[float, int]:
        """Importance lost per cost saved by the next step down, and where it leads."""
        for step in range(self._step[pool] - 1, -1, -1):
            saved = -self._change(pool, step)
            if saved > 0.0:  # a measured latency may not fall for some steps, which are then taken as one
                return -self._gain(pool, step) / saved, step
        return float("inf"), 0

    def _gain(self, pool: str, step: int) -> float:
        counts, kept = self._allowed[pool], self._importance[pool]
        return kept[counts[step]] - kept[counts[self._step[pool]]]

    def _change(self, pool: str, step: int) -> float:
        after = {**self._present, pool: self._allowed[pool][step]}
        return sum(term.at(after) - term.at(self._present) for term in self._terms[pool])

    def _move(self, pool: str, step: int) -> None:
        self._spent += self._change(pool, step)
        self._step[pool] = step
        self._present[pool] = self._allowed[pool][step]
