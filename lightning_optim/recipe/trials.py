"""Search by trials: every architecture is trained on its own, without a supernet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import distributed

from lightning_optim.callbacks.nas.evaluation import logged_metrics
from lightning_optim.callbacks.nas.search_file import SearchFile, search_identity
from lightning_optim.callbacks.nas.search_messages import SearchMessages
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.bounds import cheapest_architectures, find_broken_bound
from lightning_optim.nas.measure import NetworkCost
from lightning_optim.nas.progress import MeasureCost, SearchProgress, Values
from lightning_optim.nas.result import Evaluation, SearchResult, best_of
from lightning_optim.nas.selection import Selection
from lightning_optim.nas.supernet import Supernet
from lightning_optim.recipe.artefact import load_weights, save_weights
from lightning_optim.recipe.determinism import seed_everything
from lightning_optim.recipe.search_stage import SearchingCallback
from lightning_optim.recipe.stage import QUIET, is_first_process
from lightning_optim.search.proposal import Proposal

PROGRESS, BEST = "trials.json", "best.safetensors"


@final
@dataclass(frozen=True, kw_only=True)
class TrialSearch:
    """Search by trials (multi-trial search): each proposal is trained on its own for a few epochs, and validated.

    It costs a training per architecture where a supernet costs one in all, and no weights are shared that could rank
    architectures wrongly. Every trial begins with the weights of the same fresh module, and its random numbers are a
    function of the seed and the architecture. A search that is killed goes on in the same folder, from the trial that
    it was in, to the same end.

    Args:
        searcher: Says what may vary, with which strategy, and how it is judged: a ``NASSupernet``, which trains nothing
            here. A fidelity that its strategy proposes is a number of epochs. Each network has been trained by itself,
            so that no statistics are recalibrated.
        make_module: Builds the LightningModule.
        make_trainer: Builds the Trainer of one trial, with its own callbacks, given ``max_epochs`` and keywords that
            keep it quiet.
        data: The data set.
        folder: Where progress and the best weights are kept.
        epochs: Epochs of a trial, at least 1, where the strategy proposes no fidelity.

    Raises:
        ValueError: If ``epochs`` is below 1.
    """

    searcher: SearchingCallback
    make_module: Callable[[], LightningModule]
    make_trainer: Callable[..., Trainer]
    data: LightningDataModule
    folder: Path
    epochs: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.epochs < 1:
            raise ValueError(f"epochs of a trial must be at least 1, got {self.epochs}")

    def run(self) -> SearchResult:
        """Train proposal after proposal until the evaluations are spent or the space is used up.

        Returns:
            The pick, the front and all evaluations; also the searcher's ``result``.

        Raises:
            ArtefactError: If the folder holds the progress of another search.
            ValueError: If a bound excludes the whole space, validation logs no such metric, or nothing was within the
                bounds.
        """
        searcher, supernet = self.searcher, self._fresh_supernet()
        selection = searcher.selection
        broken = find_broken_bound(supernet, selection)
        if broken is not None:
            raise ValueError(broken)
        first = [supernet.default, *cheapest_architectures(supernet, selection)]
        num_scores = len(selection.objectives)
        started = searcher.strategy.start(supernet.space, searcher.seed, num_scores=num_scores, first=first)
        screening = selection.screening
        screen = None if screening is None else lambda found: float(_agreed(screening.measure(supernet, found)))
        progress = SearchProgress(started, selection, screen=screen, unscreened=first)
        file = self._file(supernet)
        file.load(progress)
        messages = SearchMessages(selection, None, is_shown=is_first_process())

        def measure(architecture: Architecture, entry: NetworkCost) -> float:
            return float(_agreed(supernet.measure(architecture, entry.cost)))

        def evaluate(proposals: Sequence[Proposal]) -> list[Values]:
            return [self._tried(supernet, proposal, progress.evaluations, measure) for proposal in proposals]

        def keep(progress: SearchProgress) -> None:
            file.save(progress)
            messages.evaluated(progress.evaluations)

        searcher.result = progress.run(evaluate, measure, keep)
        messages.found(searcher.result, supernet.space)
        return searcher.result

    def trained_pick(self) -> LightningModule:
        """Return the pick with the weights of its trial.

        Raises:
            ArtefactError: If the folder has no weights of it.
            ValueError: If nothing has been picked yet.
        """
        if self.searcher.result is None:
            raise ValueError("there is no pick yet: call run first")
        module = _extracted(self._fresh_supernet(), self.searcher.result.pick.architecture)
        load_weights(self.folder / BEST, module)
        return module

    def _fresh_supernet(self) -> Supernet:
        seed_everything(self.searcher.seed, "model")
        return self.searcher.convert(self.make_module())

    def _file(self, supernet: Supernet) -> SearchFile:
        searcher = self.searcher
        identity = search_identity(
            supernet.site.root, supernet.decisions, searcher.strategy, searcher.selection, searcher.seed
        )
        return SearchFile(self.folder / PROGRESS, {**identity, "epochs": self.epochs}, is_writer=is_first_process())

    def _tried(
        self, supernet: Supernet, proposal: Proposal, before: Sequence[Evaluation], measure: MeasureCost
    ) -> Values:
        """Train a proposal and return its metrics; its weights are kept while it is the best."""
        options, selection = supernet.space.options_of(proposal.candidate), self.searcher.selection
        seed_everything(self.searcher.seed, "trial", sorted(options.items()), proposal.fidelity)
        module = _extracted(supernet, proposal.candidate)
        epochs = self.epochs if proposal.fidelity is None else proposal.fidelity
        trainer = self.make_trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET)
        trainer.fit(module, datamodule=self.data)
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.validate(module, datamodule=self.data, verbose=False)
        metrics = dict(_agreed(logged_metrics(trainer, selection)))
        costs = {name: measure(proposal.candidate, entry) for name, entry in selection.costs.items()}
        if is_first_process() and _is_best(Evaluation.of(proposal, {**metrics, **costs}), before, selection):
            save_weights(self.folder / BEST, module)  # before the progress is: a trial that is killed here is repeated
        return metrics


def _extracted(supernet: Supernet, architecture: Architecture) -> LightningModule:
    module = supernet.extract(architecture)
    assert isinstance(module, LightningModule), "the copy of a LightningModule"
    return module


def _is_best(evaluation: Evaluation, before: Sequence[Evaluation], selection: Selection) -> bool:
    try:
        return best_of([*before, evaluation], selection).pick is evaluation
    except ValueError:  # nothing within the bounds yet
        return False


def _agreed(value: Any) -> Any:
    """The first rank's value, on all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]
