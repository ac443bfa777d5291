"""Neural architecture search (NAS): a supernet trains all architectures of a space, then a search picks one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.nas.checks import check_slices, checked_space, prepare_strategy, refuse_compiled
from lightning_optim.callbacks.nas.evaluation import Score, SubnetEvaluator, joined
from lightning_optim.callbacks.nas.example import network_inputs
from lightning_optim.callbacks.nas.first_batches import FirstBatches
from lightning_optim.callbacks.nas.fit_end import (
    SearchAt,
    check_before_fit,
    check_data,
    check_monitors,
    check_search,
    checked_moment,
    log_after_fit,
    progress_path,
    save_after_fit,
    within_fit,
)
from lightning_optim.callbacks.nas.late import Afterwards, late_hook
from lightning_optim.callbacks.nas.loading import load_weights, read_supernet
from lightning_optim.callbacks.nas.search_file import search_identity
from lightning_optim.callbacks.nas.search_run import SearchRun
from lightning_optim.callbacks.nas.supernet_training import SupernetTraining
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.checked import checked
from lightning_optim.errors import TargetError
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.recalibration import batch_norm_statistics, set_batch_norm_statistics
from lightning_optim.nas.result import SearchResult
from lightning_optim.nas.sampler.base import Sampler
from lightning_optim.nas.sampler.uniform_sampling import UniformSampling
from lightning_optim.nas.selection import Selection
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.supernet import Supernet, build_supernet
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.search.strategy.evolution import Evolution
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import check_initialized, find_network
from lightning_optim.surgery.shard import local


@final
@checked
class NASSupernet(TechniqueCallback):
    """Supernet of any LightningModule (NAS): each optimizer step trains the paths that a sampler draws.

    The paths are a function of the seed and the number of steps done, and of the architecture parameters of a sampler
    that learns: the same on every rank and in a resumed run. Under manual optimization a step is a batch.
    At the end of the fit, or when ``search`` is called, architectures are evaluated with the weights that they inherit.
    ``extract`` returns the pick as a plain module, to be trained on its own.

    Validation, testing and prediction run the pick once there is one, and the user's own network until then. The
    user's own operations keep their keys; candidates lie below ``_candidates`` of the operation they may replace. The
    module stays a supernet after the fit, with that same architecture active.

    A checkpoint of it has the candidates' weights too, so that ``load_from_checkpoint`` of the user's class refuses it:
    in another process ``load`` makes the supernet of a fresh module, and a trainer with this callback and a
    ``ckpt_path`` does so by itself. A search at the end of the fit that was killed goes on where it was, once that fit
    is resumed from its last checkpoint: its progress is written beside the checkpoints, after each evaluation.

    Args:
        space: What may vary, by names of your choice.
        network: Name of the network in the LightningModule, ``""`` for the LightningModule itself; ``None`` finds it.
        sampler: Draws the paths that a step trains; ``None`` is one path, drawn uniformly.
        strategy: Proposes architectures to the search; ``None`` is regularized evolution.
        selection: Which score the search compares, and the bound on the cost; ``None`` takes its defaults.
        search_at: When the search happens: ``"fit_end"``, on the data of the fit, or ``"call"``, when ``search`` is
            called. ``None`` is the end of the fit if a strategy or a selection is given, else the call.
        example: Example inputs of the network: a tensor, a sequence of arguments or a mapping of keyword arguments;
            ``None`` takes the LightningModule's ``example_input_array``.
        seed: Seeds the paths, the candidates' weights and the search.
        guard: Whether ranks compare the path of each step, so that a mismatch raises before it corrupts weights.
        name: Tells several instances in one Trainer apart: each needs a name of its own.

    Raises:
        TypeError: If an entry of the space, the strategy or the selection is of another kind.
        ValueError: If the space is empty, or ``search_at`` names no moment.

    Example:
        >>> from lightning_optim.nas import OperationChoice
        >>> from lightning_optim import Targets
        >>> choice = OperationChoice(targets=Targets(include=("net.mix",)), candidates={"skip": nn.Identity})
        >>> NASSupernet(space={"mix": choice}).state_key
        "NASSupernet{'name': None}"
    """

    def __init__(  # noqa: PLR0913  # one keyword for each question that a search asks
        self,
        *,
        space: Mapping[str, SearchDimension],
        network: str | None = None,
        sampler: Sampler | None = None,
        strategy: Strategy | None = None,
        selection: Selection | None = None,
        search_at: SearchAt | None = None,
        example: Any = None,
        seed: int = 0,
        guard: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.space = checked_space(space)
        self.search_at = checked_moment(search_at, is_configured=not (strategy is None and selection is None))
        self.strategy: Strategy = Evolution() if strategy is None else strategy
        self.selection = Selection() if selection is None else selection
        self.network, self.example, self.seed, self.guard = network, example, seed, guard
        self.sampler: Sampler = UniformSampling() if sampler is None else sampler
        self._training = SupernetTraining(self.sampler, seed, guard=guard)
        self._supernet: Supernet | None = None
        self._patches = Patches()
        self._evaluated: Architecture | None = None
        self._has_trained = False
        self._statistics: dict[str, Tensor] = {}
        self.result: SearchResult | None = None

    @property
    def supernet(self) -> Supernet:
        """The converted module and its decisions.

        Raises:
            RuntimeError: Before any module has been converted.
        """
        if self._supernet is None:
            raise RuntimeError("nothing has been converted yet: run trainer.fit with this callback first")
        return self._supernet

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many batches each option of each decision was trained with."""
        return self._training.counts(self.supernet.decisions)

    @property
    def eval_architecture(self) -> Architecture:
        """The architecture that runs outside training: in a search the one under evaluation, then the pick.

        Until there is a pick, it is the user's own network.
        """
        if self._evaluated is not None:
            return dict(self._evaluated)
        return self.supernet.default if self.result is None else dict(self.result.pick.architecture)

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_compiled(pl_module)
        if stage == "fit":
            prepare_strategy(trainer)
            self._training.prepare(trainer)
            check_slices(trainer, self.space)
            self._has_trained = False
            if self.search_at == "fit_end":
                check_before_fit(trainer, self.selection)
        try:
            self.convert(pl_module)
        except TargetError:
            hook = late_hook(pl_module)
            if hook is None:
                raise
            self._patches.undo()
            self._patches.wrap(pl_module, hook, Afterwards(lambda: self.convert(pl_module)))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settings = (self.supernet.decisions, self.seed, self.sampler)
        check_ranks_agree(trainer, settings, "the search space, the sampler or the seed of NASSupernet")
        self._training.start(self.supernet)
        if self.search_at == "fit_end":
            check_search(trainer, self.supernet, self.strategy, self.selection)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_trained, self._statistics = True, {}
        self._training.begin(trainer, pl_module)
        if self.search_at == "fit_end":
            check_data(trainer, self.selection.recalibration_batches)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._training.begin_batch(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._activate(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.search_at == "fit_end" and trainer.state.fn == "fit":
            check_monitors(trainer, self.selection)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._activate(pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._activate(pl_module)

    def _activate(self, pl_module: LightningModule) -> None:
        self.supernet.activate(self.eval_architecture)
        if self._statistics and self._evaluated is None:  # a checkpoint from before the search has those of all paths
            set_batch_norm_statistics(pl_module, self._statistics)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        was_trained = self.result is None and self._training.has_trained  # by a fit that was killed since
        if self.search_at == "fit_end" and (self._has_trained or was_trained):
            check_data(trainer, self.selection.recalibration_batches)
            path = progress_path(trainer, self._identity)
            with within_fit(trainer):
                result = self.search(trainer, pl_module, path=path)
            if path is not None and trainer.is_global_zero:
                path.unlink(missing_ok=True)
            log_after_fit(trainer, {self.metric("nas", name): value for name, value in result.pick.values.items()})
            findings = self._search_run(trainer).findings(result)
            save_after_fit(trainer, "nas_pick" if self.name is None else f"nas_{self.name}_pick", findings)

    @override
    def state_dict(self) -> dict[str, Any]:
        result = None if self.result is None else self.result.state_dict()
        return {"training": self._training.state_dict(), "result": result}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._training.load_state_dict(state_dict["training"])
        result = state_dict["result"]
        if result is not None:  # a checkpoint from before the search does not undo it
            self.result = SearchResult.from_state_dict(result)

    def convert(self, pl_module: LightningModule) -> Supernet:
        """Turn a module into the supernet; ``setup`` calls this, and a second call changes nothing.

        Raises:
            TargetError: If a target is wrong; the module is then as it was.
            ValueError: If there are no example inputs, or the network is sharded already.
        """
        if self._supernet is None or self._supernet.site.root is not pl_module:
            name, network = find_network(pl_module, self.network)
            check_initialized(network, name)
            if any(local(parameter) is not parameter for parameter in network.parameters()):
                raise ValueError("the network is sharded already; build its layers in __init__, and shard them later")
            inputs = network_inputs(pl_module, network, self.example)
            site = Site(root=pl_module, network=name, args=inputs.args, kwargs=inputs.kwargs, seed=self.seed)
            self._supernet = build_supernet(site, self.space, self.name or "")
            self._training.renew(self._supernet.decisions)
        return self._supernet

    def search(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        dataloaders: Any = None,
        calibration: Any = None,
        score: Score | None = None,
        path: str | Path | None = None,
    ) -> SearchResult:
        """Find the best architecture within the bound, each evaluated with the weights that it inherits.

        Each gets batch-norm statistics of its own, then the trainer validates it. Loggers, progress bars,
        checkpoints and early stopping do not see this. Afterwards the module runs the pick, with its statistics.
        ``describe_search`` makes plain data of the result, and ``write_findings`` a file and a plot.

        Args:
            trainer: The trainer of the fit, or any other.
            pl_module: The trained module.
            dataloaders: What to validate on; ``None`` takes the validation data of the trainer's fit.
            calibration: Batches for the statistics, of the form that ``validation_step`` takes; ``None`` takes the
                training data of the trainer's fit.
            score: Scores the module in place of its validation, in the sense of ``selection.mode``; validation then
                logs nothing, so that ``selection.measures`` can hold costs alone.
            path: JSON file of the search's progress, written after each evaluation. If it is there, the search
                continues from it: after a kill, or with more ``selection.evaluations``. The data and ``score`` must be
                the same; the weights, the space and the settings are checked.

        Returns:
            The pick, the Pareto front of score and cost, and all evaluations; also in ``result``.

        Raises:
            ArtefactError: If the file is of another search.
            ValueError: If data is missing, or nothing within the bound was found.
        """
        supernet, selection = self.convert(pl_module), self.selection
        dataloaders = trainer.val_dataloaders if dataloaders is None else dataloaders
        calibration = trainer.train_dataloader if calibration is None else calibration
        if dataloaders is None and score is None:
            raise ValueError("this trainer has no validation data yet; pass dataloaders")
        if calibration is None and selection.recalibration_batches:
            raise ValueError(
                "this trainer has no training data yet; pass calibration, or set selection.recalibration_batches to 0"
            )
        batches = FirstBatches(
            calibration if calibration is not None else iter(()), selection.recalibration_batches, self.seed
        )
        evaluator = SubnetEvaluator(
            trainer, pl_module, self._evaluate_next,
            selection=selection, dataloaders=dataloaders, calibration=batches, score=score,
        )  # fmt: skip
        try:
            with joined(trainer, evaluator, owner=self):
                self.result = self._search_run(trainer).run(evaluator, path, self._identity if path else {})
                evaluator.calibrate(self.result.pick.architecture)
            self._statistics = batch_norm_statistics(pl_module) if batches else {}
        finally:
            self._evaluated = None
            supernet.activate(self.eval_architecture)
        return self.result

    def extract(self, pl_module: LightningModule, architecture: Mapping[str, int] | None = None) -> nn.Module:
        """Return one path as a plain copy of the module, equal to the path bit for bit.

        Args:
            pl_module: The converted module.
            architecture: The path; ``None`` is the pick.

        Raises:
            ValueError: If there is no pick yet, or the architecture is not one of the space.
        """
        if architecture is None and self.result is None:
            raise ValueError("there is no pick yet: call search first, or say which architecture to extract")
        supernet = self.convert(pl_module)
        return supernet.extract(self.eval_architecture if architecture is None else architecture)

    def load(self, pl_module: LightningModule, path: str | Path) -> LightningModule:
        """Turn a fresh module into the supernet of a checkpoint, with its weights and its pick.

        Args:
            pl_module: The user's module as it is built; changed in place.
            path: A Trainer's checkpoint, written with this callback.

        Returns:
            The same module: ``extract`` returns the pick from it, ``search`` goes on with it.

        Raises:
            ArtefactError: If the file is missing, or of another module or space.
        """
        content, state = read_supernet(path, self.state_key)
        self.convert(pl_module)
        self.load_state_dict(state)
        load_weights(pl_module, content, path)
        self.supernet.activate(self.eval_architecture)
        return pl_module

    @property
    def _identity(self) -> dict[str, Any]:
        supernet = self.supernet
        return search_identity(supernet.site.root, supernet.decisions, self.strategy, self.selection, self.seed)

    def _evaluate_next(self, architecture: Architecture) -> None:
        self._evaluated = architecture
        self.supernet.activate(architecture)

    def _search_run(self, trainer: Trainer) -> SearchRun:
        return SearchRun(
            trainer=trainer,
            supernet=self.supernet,
            strategy=self.strategy,
            selection=self.selection,
            seed=self.seed,
            name=self.name,
            first=self._training.picks(self.supernet),
        )

    @override
    def release(self) -> None:
        self._patches.undo()
        self._training.release()
        if self._supernet is not None:
            self._supernet.activate(self.eval_architecture)
