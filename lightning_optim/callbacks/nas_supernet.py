"""Neural architecture search (NAS): a supernet trains all architectures of a space, then a search picks one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.nas.evaluation import FirstBatches, Score, SubnetEvaluator, joined
from lightning_optim.callbacks.nas.example import network_inputs
from lightning_optim.callbacks.nas.search_file import SearchFile, search_identity
from lightning_optim.callbacks.trainer.clock import clock_of
from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.lightning_private import ddp_settings, is_compiled
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from lightning_optim.errors import TargetError
from lightning_optim.nas.architecture import Architecture
from lightning_optim.nas.progress import SearchProgress
from lightning_optim.nas.result import SearchResult
from lightning_optim.nas.selection import Selection
from lightning_optim.nas.space.base import SearchDimension, Site
from lightning_optim.nas.supernet import Supernet, build_supernet
from lightning_optim.search.decision import check_candidate
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.search.strategy.evolution import Evolution
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import find_network
from lightning_optim.surgery.shard import local


@final
class NASSupernet(TechniqueCallback):
    """Supernet of any LightningModule (NAS): trains one path per optimizer step, drawn uniformly.

    The architecture is a function of the seed and the number of steps done: the same on every rank and in a resumed
    run. Under manual optimization a step is a batch.
    After the fit, ``search`` evaluates architectures with the weights that they inherit, and ``extract`` returns the
    pick as a plain module, to be trained on its own.

    Validation, testing and prediction run the pick once there is one, and the user's own network until then. The
    user's own operations keep their keys; candidates lie below ``_candidates`` of the operation they may replace. The
    module stays a supernet after the fit, with that same architecture active.

    Args:
        space: What may vary, by names of your choice.
        network: Name of the network in the LightningModule, ``""`` for the LightningModule itself; ``None`` finds it.
        strategy: Proposes architectures to ``search``; ``None`` is regularized evolution.
        selection: Which score ``search`` compares, and the bound on the cost; ``None`` takes its defaults.
        example: Example inputs of the network: a tensor, a sequence of arguments or a mapping of keyword arguments;
            ``None`` takes the LightningModule's ``example_input_array``.
        seed: Seeds the paths, the candidates' weights and the search.
        guard: Whether ranks compare the path of each step, so that a mismatch raises before it corrupts weights.
        name: Tells several instances in one Trainer apart: each needs a name of its own.

    Raises:
        TypeError: If an entry of the space, the strategy or the selection is of another kind.
        ValueError: If the space is empty.

    Example:
        >>> from lightning_optim.nas import OperationChoice
        >>> from lightning_optim import Targets
        >>> choice = OperationChoice(targets=Targets(include=("net.mix",)), candidates={"skip": nn.Identity})
        >>> NASSupernet(space={"mix": choice}).state_key
        "NASSupernet{'name': None}"
    """

    def __init__(
        self,
        *,
        space: Mapping[str, SearchDimension],
        network: str | None = None,
        strategy: Strategy | None = None,
        selection: Selection | None = None,
        example: Any = None,
        seed: int = 0,
        guard: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.space = _checked_space(space)
        self.strategy: Strategy = Evolution() if strategy is None else strategy
        self.selection = Selection() if selection is None else selection
        for key, value, kind in (("strategy", self.strategy, Strategy), ("selection", self.selection, Selection)):
            if not isinstance(value, kind):
                raise TypeError(f"{key} must be a {kind.__name__}, got {type(value).__name__}")
        self.network, self.example, self.seed, self.guard = network, example, seed, guard
        self._supernet: Supernet | None = None
        self._patches = Patches()
        self._counts: dict[str, list[int]] = {}
        self._evaluated: Architecture | None = None
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
        decisions = self.supernet.decisions
        return {entry.name: dict(zip(entry.options, self._counts[entry.name], strict=True)) for entry in decisions}

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
        _refuse_compiled(pl_module)
        if stage == "fit":
            _prepare_strategy(trainer)
            _check_slices(trainer, self.space)
        try:
            self.convert(pl_module)
        except TargetError:
            hook = _late_hook(pl_module)
            if hook is None:
                raise
            self._patches.undo()
            self._patches.wrap(pl_module, hook, _ConvertAfterwards(self, pl_module))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settings = (self.supernet.decisions, self.seed)
        check_ranks_agree(trainer, settings, "the search space or the seed of NASSupernet")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        architecture = self.supernet.sample(self.seed, clock_of(trainer).step)
        if self.guard:
            check_ranks_agree(trainer, architecture, "the architecture of this step")
        self.supernet.activate(architecture)
        for name, option in architecture.items():
            self._counts[name][option] += 1

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.supernet.activate(self.eval_architecture)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.supernet.activate(self.eval_architecture)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.supernet.activate(self.eval_architecture)

    @override
    def state_dict(self) -> dict[str, Any]:
        result = None if self.result is None else self.result.state_dict()
        return {"counts": {name: list(counts) for name, counts in self._counts.items()}, "result": result}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = {name: len(counts) for name, counts in state_dict["counts"].items()}
        here = {name: len(counts) for name, counts in self._counts.items()}
        if here and saved != here:
            raise ValueError(f"the checkpoint's supernet decides {saved}, this one {here}: give it the same space")
        self._counts = {name: [int(count) for count in counts] for name, counts in state_dict["counts"].items()}
        result = state_dict["result"]
        self.result = None if result is None else SearchResult.from_state_dict(result)

    def convert(self, pl_module: LightningModule) -> Supernet:
        """Turn a module into the supernet; ``setup`` calls this, and a second call changes nothing.

        Raises:
            TargetError: If a target is wrong; the module is then as it was.
            ValueError: If there are no example inputs, or the network is sharded already.
        """
        if self._supernet is None or self._supernet.site.root is not pl_module:
            name, network = find_network(pl_module, self.network)
            if any(local(parameter) is not parameter for parameter in network.parameters()):
                raise ValueError("the network is sharded already; build its layers in __init__, and shard them later")
            inputs = network_inputs(pl_module, network, self.example)
            site = Site(root=pl_module, network=name, args=inputs.args, kwargs=inputs.kwargs, seed=self.seed)
            self._supernet = build_supernet(site, self.space, self.name or "")
            fresh = {decision.name: [0] * len(decision.options) for decision in self._supernet.decisions}
            self._counts = {name: self._counts.get(name, counts) for name, counts in fresh.items()}
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

        Args:
            trainer: The trainer of the fit, or any other.
            pl_module: The trained module.
            dataloaders: What to validate on; ``None`` takes the validation data of the trainer's fit.
            calibration: Batches for the statistics, of the form that ``validation_step`` takes; ``None`` takes the
                training data of the trainer's fit.
            score: Scores the module in place of its validation, in the sense of ``selection.mode``.
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
        cheapest = trainer.strategy.broadcast(supernet.find_cheapest(selection.cost))
        first = [supernet.default, cheapest]
        progress = SearchProgress(self.strategy.start(supernet.decisions, self.seed, first), selection)
        try:
            with joined(trainer, evaluator, owner=self):
                self.result = self._run(progress, evaluator, trainer, path)
                evaluator.calibrate(self.result.pick.architecture)
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

    def _evaluate_next(self, architecture: Architecture) -> None:
        self._evaluated = architecture
        self.supernet.activate(architecture)

    def _run(
        self, progress: SearchProgress, evaluator: SubnetEvaluator, trainer: Trainer, path: str | Path | None
    ) -> SearchResult:
        supernet, cost = self.supernet, self.selection.cost

        def measure(architecture: Architecture) -> float:
            return float(trainer.strategy.broadcast(supernet.measure(architecture, cost)))  # ranks measure other times

        if path is None:
            return progress.run(evaluator, measure)
        identity = search_identity(supernet.site.root, supernet.decisions, self.strategy, self.selection, self.seed)
        file = SearchFile(path, trainer, identity)
        file.load(progress)
        return progress.run(evaluator, measure, file.save)

    @override
    def release(self) -> None:
        self._patches.undo()
        if self._supernet is not None:
            self._supernet.activate(check_candidate(self._supernet.decisions, self.eval_architecture))


@final
class _ConvertAfterwards:
    """Wrapper of a hook: lets the module build its layers there, and converts them afterwards."""

    def __init__(self, callback: NASSupernet, pl_module: LightningModule) -> None:
        self._callback, self._pl_module = callback, pl_module

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._callback.convert(self._pl_module)
        return result


def _late_hook(pl_module: LightningModule) -> str | None:
    """The last hook in which the module may build layers of its own."""
    for hook in ("configure_model", "setup"):
        if getattr(type(pl_module), hook) is not getattr(LightningModule, hook):
            return hook
    return None


def _checked_space(space: Mapping[str, SearchDimension]) -> dict[str, SearchDimension]:
    entries = dict(space)
    if not entries:
        raise ValueError("space must say what may vary, got no entry; choose from lightning_optim.nas.space")
    for key, value in entries.items():
        if not isinstance(value, SearchDimension):
            raise TypeError(f"space[{key!r}] must be one of lightning_optim.nas.space, got {type(value).__name__}")
    return entries


def _refuse_compiled(pl_module: LightningModule) -> None:
    has_compiled = any(type(module).__name__ == "OptimizedModule" for module in pl_module.modules())
    if has_compiled or is_compiled(pl_module):
        raise ValueError(
            "a supernet changes its path every step and would be compiled anew each time; "
            "train it uncompiled, and compile the extracted pick"
        )


def _check_slices(trainer: Trainer, space: Mapping[str, SearchDimension]) -> None:
    slicing = [key for key, dimension in space.items() if dimension.slices_weights]
    if slicing and strategy_kind(trainer) is StrategyKind.SHARDED:
        raise ValueError(
            f"space[{slicing[0]!r}] takes slices of weights, but under {strategy_name(trainer)} each rank holds a part "
            "of every weight; use DDPStrategy, or choose whole operations only"
        )


def _prepare_strategy(trainer: Trainer) -> None:
    is_fsdp2 = is_instance_of(trainer.strategy, "ModelParallelStrategy")
    if strategy_kind(trainer) is StrategyKind.SHARDED and not is_fsdp2:
        raise ValueError(
            f"NASSupernet cannot train under {strategy_name(trainer)}; use DDPStrategy or ModelParallelStrategy"
        )
    settings = ddp_settings(trainer)
    if settings is None:
        return
    if settings.get("static_graph"):
        raise ValueError("a supernet's graph changes every step; set static_graph=False in DDPStrategy")
    if settings.get("find_unused_parameters") is False:
        warnings.warn("a step leaves most of a supernet unused: find_unused_parameters is set to True", stacklevel=2)
    settings["find_unused_parameters"] = True
