"""Ways to train one net, each with the best of three settings, beside the net trained without any."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.clothes import Clothes, Training, accuracy, judged
from benchmarks.study import Kept

NONE = "none"
Figures = dict[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train.

    Args:
        make: Makes its callbacks, of a strength.
        strengths: Those that are tried.
    """

    make: Callable[[float], list[Callback]]
    strengths: Sequence[float] = (0.0,)


@final
class Arms:
    """Fits of all arms. ``none`` tries three learning rates; the others take the best of them, and try strengths.

    Args:
        kept: What is done.
        data: Images.
        net: Makes the net.
        training: How it is trained; the learning rate is searched.
        rates: Learning rates that are tried.
        arms: Name -> arm; one is ``none``.
        measures: Further figures of a fit, from its callbacks.
    """

    def __init__(
        self,
        kept: Kept,
        data: Clothes,
        net: Callable[[], nn.Module],
        training: Training,
        rates: Sequence[float],
        arms: Mapping[str, Arm],
        measures: Callable[[Sequence[Callback]], Figures] = lambda _: {},
    ) -> None:
        self.kept, self.data, self.arms, self.rates = kept, data, arms, rates
        self._net, self._training, self._measures = net, training, measures

    @property
    def lr(self) -> float:
        """The learning rate that is best for ``none``."""
        return max(self.rates, key=lambda lr: self._fit(NONE, 0.0, lr, 0)["validation"])

    def rows(self, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Figures]:
        """Figures of ``none`` and of some arms, each with its best strength and every seed.

        Returns:
            Of each arm its ``strength``, the ``test`` accuracies, means of all figures, and its ``gain``: how far its
            mean test accuracy is above that of ``none``, with the pooled standard ``error`` of the difference.
        """
        rows = {name: self._row(name, seeds) for name in (NONE, *names)}
        none = rows[NONE]["test"]
        for row in rows.values():
            row["gain"] = statistics.mean(row["test"]) - statistics.mean(none)
            row["error"] = math.sqrt(_squared_error(row["test"]) + _squared_error(none))
        return rows

    def _row(self, name: str, seeds: Sequence[int]) -> Figures:
        lr, strengths = self.lr, self.arms[name].strengths
        best = max(strengths, key=lambda strength: self._fit(name, strength, lr, 0)["validation"])
        found = [self._fit(name, best, lr, seed) for seed in seeds]
        means = {f"mean_{figure}": statistics.mean(each[figure] for each in found) for figure in found[0]}
        return {"strength": best, "test": [each["test"] for each in found], **means}

    def _fit(self, name: str, strength: float, lr: float, seed: int) -> Figures:
        def measure() -> Figures:
            callbacks = self.arms[name].make(strength)
            net = self.data.fit(self._net, callbacks, replace(self._training, lr=lr), seed).net
            found = judged(net, self.data, train=accuracy(net, self.data.train), **self._measures(callbacks))
            print(f"{name} {strength:g} lr={lr:g} seed {seed}: {found}", flush=True)
            return found

        return dict(self.kept.once(f"{name}/{strength:g}/lr={lr:g}/{seed}", measure))


def show_rows(title: str, rows: Mapping[str, Figures], columns: Mapping[str, Callable[[Figures], str]]) -> None:
    """Print a table of ``Arms.rows``.

    Args:
        title: Its title.
        rows: The rows.
        columns: What stands between the strength and the seeds, by name.
    """
    table = Table(title=title)
    for name in ("arm", "strength", *columns, "seeds", "test", "gain", "error"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, row in rows.items():
        between, seeds = (read(row) for read in columns.values()), " ".join(f"{value:.2f}" for value in row["test"])
        figures = (f"{value:.2f}" for value in (row["mean_test"], row["gain"], row["error"]))
        table.add_row(arm, f"{row['strength']:g}", *between, seeds, *figures)
    Console(width=120).print(table)


def _squared_error(values: Sequence[float]) -> float:
    return statistics.variance(values) / len(values) if len(values) > 1 else math.nan
