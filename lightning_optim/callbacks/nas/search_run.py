"""Run of a search over a trained supernet: costs, progress file, messages and what is left of it on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Trainer

from lightning_optim.callbacks.nas.evaluation import SubnetEvaluator
from lightning_optim.callbacks.nas.search_file import SearchFile
from lightning_optim.callbacks.nas.search_messages import SearchMessages
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.bounds import cheapest_architectures
from lightning_optim.nas.description import describe_search
from lightning_optim.nas.measure import NetworkCost
from lightning_optim.nas.progress import SearchProgress
from lightning_optim.nas.result import SearchResult
from lightning_optim.nas.selection import Selection
from lightning_optim.nas.supernet import Supernet
from lightning_optim.report.search_findings import SearchFindings
from lightning_optim.search.strategy.base import Strategy


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRun:
    """Search of one callback.

    Args:
        trainer: Its ranks all find the same.
        supernet: What is searched.
        strategy: Proposes architectures.
        selection: What is measured, and how many are evaluated.
        seed: Of the strategy.
        name: Of the callback.
        first: Architectures to evaluate before any others.
    """

    trainer: Trainer
    supernet: Supernet
    strategy: Strategy
    selection: Selection
    seed: int
    name: str | None
    first: Sequence[Architecture] = ()

    def run(self, evaluator: SubnetEvaluator, path: str | Path | None, identity: Mapping[str, Any]) -> SearchResult:
        """Search, or go on with the search whose progress is in a file.

        Args:
            evaluator: Scores architectures.
            path: The file of the progress; ``None`` keeps none.
            identity: What makes a search the same search.

        Raises:
            ArtefactError: If the file is of another search.
            ValueError: If nothing within the bounds was found.
        """
        broadcast = self.trainer.strategy.broadcast
        cheapest = broadcast(cheapest_architectures(self.supernet, self.selection))
        first = [*self.first, self.supernet.default, *cheapest]
        num_scores = len(self.selection.objectives)
        started = self.strategy.start(self.supernet.space, self.seed, num_scores=num_scores, first=first)
        screening = self.selection.screening
        screen = None if screening is None else lambda found: float(broadcast(screening.measure(self.supernet, found)))
        progress = SearchProgress(started, self.selection, evaluator.at_once, screen=screen, unscreened=first)
        messages = SearchMessages(self.selection, self.name, is_shown=self.trainer.is_global_zero)
        file: SearchFile | None = None
        if path is not None:
            file = SearchFile(path, identity, is_writer=self.trainer.is_global_zero, broadcast=broadcast)
            file.load(progress)

        def measure(architecture: Architecture, entry: NetworkCost) -> float:
            return float(broadcast(self.supernet.measure(architecture, entry.cost)))  # ranks measure other times

        def keep(progress: SearchProgress) -> None:
            if file is not None:
                file.save(progress)
            messages.evaluated(progress.evaluations)

        result = progress.run(evaluator, measure, keep)
        messages.found(result, self.supernet.space)
        return result

    def findings(self, result: SearchResult) -> SearchFindings:
        """What the search has found, for a report."""
        return SearchFindings.from_dict(describe_search(self.supernet.space, self.selection, result))
