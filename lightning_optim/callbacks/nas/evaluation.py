"""Evaluation of one architecture of a trained supernet, by the module's own validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_optim.callbacks.nas.first_batches import FirstBatches
from lightning_optim.callbacks.nas.side_by_side import (
    CollectiveCalledError,
    judging_alone,
    own_trainer,
    shared_out,
    whole_data,
)
from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.messages import tell
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.recalibration import recalibrating
from lightning_optim.nas.selection import SCORE, Selection
from lightning_optim.search.proposal import Proposal
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.torch_private import BatchNorm

Score = Callable[[LightningModule], float]


@final
class SubnetEvaluator(Callback):
    """Evaluator of subnets: joins a trainer for the time of a search and scores architectures.

    Under DDP, where the whole of the validation data is known, each rank scores architectures of its own on all of
    it, side by side with the other ranks. Elsewhere, and where the module's validation calls collectives of
    ``torch.distributed`` itself, all ranks score one architecture after the other.

    Args:
        trainer: Validates; after a fit, the trainer of the fit.
        pl_module: The supernet.
        activate: Makes an architecture the one that runs, in validation too, until the next call. No hook of this
            class changes it: the order of callbacks does not matter.
        selection: The metric.
        dataloaders: What to validate on.
        calibration: The batches for the batch-norm statistics.
        score: Scores the module itself, in evaluation mode, in place of its validation.

    Raises:
        ValueError: If metrics beside the score are wanted of a function that finds the score alone.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        activate: Callable[[Architecture], None],
        *,
        selection: Selection,
        dataloaders: Any,
        calibration: FirstBatches,
        score: Score | None,
    ) -> None:
        others = [name for name in selection.metrics if name != SCORE]
        if score is not None and others:
            raise ValueError(
                "a score of your own takes the place of validation, which alone logs "
                f"{', '.join(map(repr, others))} of selection.measures: drop the one or the others"
            )
        self._trainer, self._module, self._activate, self._selection = trainer, pl_module, activate, selection
        self._dataloaders, self._calibration, self._score = dataloaders, calibration, score
        self._whole = None if score is not None else whole_data(trainer, dataloaders)
        self._own: Trainer | None = None
        self._is_calibrating = False
        self._open = ExitStack()
        self._norms: list[nn.Module] = []

    @property
    def at_once(self) -> int:
        """How many architectures are scored side by side."""
        return 1 if self._whole is None else self._trainer.world_size

    def begin(self, callbacks: Sequence[Callback]) -> None:
        """Be given the callbacks of the trainer, this one included, before the first call."""
        if self._whole is not None:
            self._calibration.take_those_of_first_rank(self._trainer.strategy.broadcast)
            self._own = own_trainer(self._trainer, [entry for entry in callbacks if not _is_about_the_fit(entry)])

    def __call__(self, proposals: Sequence[Proposal]) -> list[Mapping[str, float]]:
        """Recalibrate and score architectures; every rank gets the same metrics."""
        if self._own is not None:
            try:
                return shared_out(proposals, self._evaluated)
            except CollectiveCalledError as error:
                self._own = self._whole = None
                tell(
                    self._trainer,
                    f"validation calls torch.distributed.{error}, so that all ranks judge one architecture after the "
                    "other, each on its share of the data",
                )
        return [dict(self._trainer.strategy.broadcast(self._evaluated(proposal))) for proposal in proposals]

    def _evaluated(self, proposal: Proposal) -> Mapping[str, float]:
        self.calibrate(proposal.candidate)
        return self._validated(proposal.fidelity) if self._score is None else self._scored(self._score)

    def calibrate(self, architecture: Architecture) -> None:
        """Activate an architecture and give it batch-norm statistics of its own."""
        self._activate(architecture)
        has_norms = any(isinstance(module, BatchNorm) for module in self._module.modules())
        if not (self._calibration and has_norms):
            return
        self._is_calibrating = True
        try:
            self._validate(self._calibration)
        finally:
            self._is_calibrating = False
            self._open.close()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_calibrating:
            self._norms = self._open.enter_context(recalibrating(pl_module))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_calibrating and trainer.world_size > 1:  # of a trainer of all ranks
            for norm in self._norms:
                for statistic in (norm.running_mean, norm.running_var):
                    assert isinstance(statistic, torch.Tensor)
                    statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))
        self._open.close()

    def _validated(self, num_batches: int | None) -> dict[str, float]:
        trainer = self._trainer if self._own is None else self._own
        with _limited(trainer, num_batches):
            self._validate(self._dataloaders if self._own is None else self._whole)
        return logged_metrics(trainer, self._selection)

    def _validate(self, dataloaders: Any) -> None:
        if self._own is None:
            self._trainer.validate(self._module, dataloaders, verbose=False)
            return
        with judging_alone(self._trainer, self._module):
            self._own.validate(self._module, dataloaders, verbose=False)

    def _scored(self, score: Score) -> dict[str, float]:
        with evaluating(self._module):
            return {SCORE: float(score(self._module))}


def logged_metrics(trainer: Trainer, selection: Selection) -> dict[str, float]:
    """Return the metrics of a selection, by name, that a trainer's validation has logged.

    Raises:
        ValueError: If one is not logged.
    """
    logged = trainer.callback_metrics
    for entry in selection.metrics.values():
        if entry.monitor not in logged:
            raise ValueError(
                f"validation logs {sorted(logged)}, but no {entry.monitor!r}: set selection.monitor, or the entry of "
                "selection.measures, to one of them"
            )
    return {name: float(logged[entry.monitor]) for name, entry in selection.metrics.items()}


@contextmanager
def _limited(trainer: Trainer, num_batches: int | None) -> Iterator[None]:
    # A fidelity is a number of validation batches.
    before = trainer.limit_val_batches
    try:
        if num_batches is not None:
            trainer.limit_val_batches = num_batches
        yield
    finally:
        trainer.limit_val_batches = before


def _is_about_the_fit(callback: Callback) -> bool:
    kinds = ("ProgressBar", "Checkpoint", "ModelSummary", "EarlyStopping")
    return any(is_instance_of(callback, kind) for kind in kinds)


@contextmanager
def joined(trainer: Trainer, evaluator: SubnetEvaluator, owner: Callback) -> Iterator[None]:
    """Give the trainer an evaluator for a while; what it validates goes into no logger and no progress bar.

    Args:
        trainer: The trainer.
        evaluator: The evaluator.
        owner: The callback that says which architecture runs; others with its ``state_key`` stay out meanwhile.
    """
    before: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
    loggers, bar = trainer.loggers, trainer.progress_bar_callback
    others = [entry for entry in before if entry is owner or entry.state_key != owner.state_key]
    trainer.callbacks = [*others, evaluator]  # type: ignore[attr-defined]  # as above
    trainer.loggers = []
    if bar is not None:
        bar.disable()
    try:
        evaluator.begin([*others, evaluator])
        yield
    finally:
        trainer.callbacks = before  # type: ignore[attr-defined]  # as above
        trainer.loggers = loggers
        if bar is not None:
            bar.enable()
