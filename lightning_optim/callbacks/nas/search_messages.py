"""Messages of a search: how far it is, and what it has found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from lightning.pytorch import Trainer

from lightning_optim.callbacks.trainer.messages import Pace, tell
from lightning_optim.nas.result import Evaluation, SearchResult
from lightning_optim.nas.selection import Selection
from lightning_optim.search.decision import Decision


@final
class SearchMessages:
    """Messages of one search: every few seconds a line, and one at the end.

    Args:
        trainer: Rank 0 of it speaks.
        selection: The score and the cost.
        name: Of the callback.
    """

    def __init__(self, trainer: Trainer, selection: Selection, name: str | None) -> None:
        self._trainer, self._selection, self._pace = trainer, selection, Pace()
        self._prefix = "NASSupernet" if name is None else f"NASSupernet {name!r}"

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell how many architectures were evaluated, if it is time to."""
        if self._pace.is_due():
            scores = [entry.score for entry in evaluations]
            best = max(scores, key=self._selection.gain)
            self._tell(
                f"{len(evaluations)} of at most {self._selection.evaluations} architectures evaluated, "
                f"best {self._selection.monitor} {best:.4g}"
            )

    def found(self, result: SearchResult, decisions: Sequence[Decision]) -> None:
        """Tell what was picked."""
        chosen = {entry.name: entry.options[result.pick.architecture[entry.name]] for entry in decisions}
        own = {entry.name: entry.default for entry in decisions}
        compared = "".join(
            f" (the network as it was: {self._worth(entry)})"
            for entry in result.evaluations
            if entry.architecture == own
        )
        self._tell(
            f"{len(result.evaluations)} architectures evaluated; the pick has {self._worth(result.pick)}{compared}: "
            + ", ".join(f"{name}={option}" for name, option in chosen.items())
        )

    def _worth(self, entry: Evaluation) -> str:
        unit = type(self._selection.cost).__name__
        return f"{self._selection.monitor} {entry.score:.4g} at {entry.cost:,.6g} ({unit})"

    def _tell(self, text: str) -> None:
        tell(self._trainer, f"{self._prefix}: {text}")
