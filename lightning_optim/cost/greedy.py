"""Which channel counts keep the most importance for a given cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from lightning_optim.cost.prices import Prices

Ladder = list[int]
"""Channel counts that a pool may have, ascending."""


def most_important(
    importance: Mapping[str, Sequence[float]], ladders: Mapping[str, Ladder], prices: Prices, limit: float
) -> dict[str, int]:
    """Choose how many channels each pool keeps: the most importance for at most ``limit``.

    Greedy: the step that loses the least importance per cost saved is taken again and again, its price read anew each
    time, since channels share operators. At the end, what still fits comes back, and pairs of pools trade channels
    as long as that helps.

    Args:
        importance: By pool, importance of its best 0, 1, 2, ... channels.
        ladders: By pool, the counts that are allowed; the last is where the search begins.
        prices: Cost for any counts; pools that are not named in ``ladders`` count as whole.
        limit: What may be spent.

    Returns:
        Pool -> channels that stay. Over the limit only if the lowest rungs are.
    """
    search = _Search(importance, ladders, prices, prices.curve.inverse(limit))
    search.descend()
    search.fill()
    while search.trade():
        search.fill()
    return search.channels


@final
class _Search:
    def __init__(
        self, importance: Mapping[str, Sequence[float]], ladders: Mapping[str, Ladder], prices: Prices, limit: float
    ) -> None:
        self._importance, self._ladders, self._limit = importance, ladders, limit
        self._rung = {pool: len(ladder) - 1 for pool, ladder in ladders.items()}
        self._terms = {pool: prices.of_pool(pool) for pool in ladders}
        self._present = {**prices.sizes, **self.channels}
        self._conflicts = {
            pool: {other for term in terms for other in term.pools if other in ladders}
            for pool, terms in self._terms.items()
        }
        self._spent = prices.total(self._present)  # a sum, which one pool's change changes by its own terms

    @property
    def channels(self) -> dict[str, int]:
        return {pool: ladder[self._rung[pool]] for pool, ladder in self._ladders.items()}

    def descend(self) -> None:
        """Take the cheapest loss again and again until the limit is kept."""
        offers = {pool: self._offer(pool) for pool in self._ladders}
        while self._spent > self._limit:
            pool = min(offers, key=lambda name: offers[name][0])
            loss, rung = offers[pool]
            if loss == float("inf"):
                return
            self._move(pool, rung)
            for neighbour in self._conflicts[pool]:
                offers[neighbour] = self._offer(neighbour)

    def fill(self) -> None:
        """Bring back, one rung at a time, the most important channels that still fit."""
        while True:
            gains = [
                (self._gain(pool, self._rung[pool] + 1), pool)
                for pool, ladder in self._ladders.items()
                if self._rung[pool] + 1 < len(ladder)
                and self._spent + self._change(pool, self._rung[pool] + 1) <= self._limit
            ]
            best = max(gains, default=(0.0, ""))
            if best[0] <= 0.0:
                return
            self._move(best[1], self._rung[best[1]] + 1)

    def trade(self) -> bool:
        """Let one pool go down so that another can go up, once, if that keeps more importance."""
        for giver in self._ladders:
            if self._rung[giver] == 0:
                continue
            loss = -self._gain(giver, self._rung[giver] - 1)
            self._move(giver, self._rung[giver] - 1)
            for taker, ladder in self._ladders.items():
                rung = self._rung[taker] + 1
                while taker != giver and rung < len(ladder) and self._gain(taker, rung) <= loss:
                    rung += 1
                if taker != giver and rung < len(ladder) and self._spent + self._change(taker, rung) <= self._limit:
                    self._move(taker, rung)
                    return True
            self._move(giver, self._rung[giver] + 1)
        return False

    def _offer(self, pool: str) -> tuple[float, int]:
        """Importance lost per cost saved by the next step down, and where it leads."""
        for rung in range(self._rung[pool] - 1, -1, -1):
            saved = -self._change(pool, rung)
            if saved > 0.0:  # a measured latency may have flats, which are crossed in one step
                return -self._gain(pool, rung) / saved, rung
        return float("inf"), 0

    def _gain(self, pool: str, rung: int) -> float:
        ladder, kept = self._ladders[pool], self._importance[pool]
        return kept[ladder[rung]] - kept[ladder[self._rung[pool]]]

    def _change(self, pool: str, rung: int) -> float:
        after = {**self._present, pool: self._ladders[pool][rung]}
        return sum(term.at(after) - term.at(self._present) for term in self._terms[pool])

    def _move(self, pool: str, rung: int) -> None:
        self._spent += self._change(pool, rung)
        self._rung[pool] = rung
        self._present[pool] = self._ladders[pool][rung]
