"""Messages of a search: how far it is, and what it has found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from lightning_optim.callbacks.trainer.messages import MESSAGES, Pace
from lightning_optim.nas.measure import say_number
from lightning_optim.nas.result import Evaluation, SearchResult, of_highest_fidelity
from lightning_optim.nas.selection import Selection
from lightning_optim.search.space import SearchSpace


@final
class SearchMessages:
    """Messages of one search: every few seconds a line, and one at the end.

    Args:
        selection: The score and the cost.
        name: Of the callback.
        is_shown: Whether this process speaks.
    """

    def __init__(self, selection: Selection, name: str | None, *, is_shown: bool) -> None:
        self._selection, self._is_shown, self._pace = selection, is_shown, Pace()
        self._prefix = "NASSupernet" if name is None else f"NASSupernet {name!r}"

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell how many architectures were evaluated, if it is time to."""
        if self._pace.is_due():
            name = self._selection.objectives[0]
            measure = self._selection.all_measures[name]
            best = max((entry.values[name] for entry in evaluations), key=measure.gain)
            self._tell(
                f"{len(evaluations)} of at most {self._selection.evaluations} architectures evaluated, "
                f"best {measure.title} {best:.4g}"
            )

    def found(self, result: SearchResult, space: SearchSpace) -> None:
        """Tell what was picked, and whether anything is left that was not tried."""
        own = [entry for entry in of_highest_fidelity(result.evaluations) if entry.architecture == space.default]
        compared = "".join(f" (the network as it was: {self._worth(entry)})" for entry in own)
        count, tried = len(result.evaluations), {tuple(entry.architecture.items()) for entry in result.evaluations}
        ended = ""
        if len(tried) == space.num_candidates:
            ended = ", the whole space"
        elif count < self._selection.evaluations:
            ended = ", no other was found within the bounds"
        self._tell(
            f"{count} architectures evaluated{ended}; the pick has {self._worth(result.pick)}{compared}: "
            + ", ".join(f"{name}={option}" for name, option in space.options_of(result.pick.architecture).items())
        )

    def _worth(self, entry: Evaluation) -> str:
        found = entry.values
        costs, metrics = self._selection.costs, self._selection.metrics
        texts = [f"{measure.title} {found[name]:.4g}" for name, measure in metrics.items()]
        prices = [f"{say_number(found[name])} ({measure.title})" for name, measure in costs.items()]
        return f"{', '.join(texts)} at {', '.join(prices)}"

    def _tell(self, text: str) -> None:
        if self._is_shown:
            MESSAGES.info(f"{self._prefix}: {text}")
