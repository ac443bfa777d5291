"""Run of a recipe, stage by stage, which goes on where a killed run stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from torch import distributed, nn

from lightning_optim.atomic import write_atomic
from lightning_optim.cost.pace import process_pace
from lightning_optim.errors import ArtefactError, OrderError
from lightning_optim.export.fallbacks import Fallbacks, check_fallbacks
from lightning_optim.export.onnx_file.open_shapes import Dynamic, OpenShapes
from lightning_optim.recipe.artefact import check_checkpoint, load_cut, load_weights, save_cut, save_weights, write_json
from lightning_optim.recipe.determinism import EpochSeed, seed_everything
from lightning_optim.recipe.evaluate import Metrics, StageWriter, evaluate
from lightning_optim.recipe.loss_recorder import LossRecorder
from lightning_optim.recipe.order import Kind, check_order
from lightning_optim.recipe.progress import EpochProgress, RecipeProgress
from lightning_optim.recipe.search_stage import (
    SearchingCallback,
    extract_pick,
    give_example,
    keep_pick,
    searching_callback,
)
from lightning_optim.recipe.stage import QUIET, CuttingCallback, Stage, check_stages, is_first_process
from lightning_optim.recipe.trials import BEST, TrialSearch
from lightning_optim.report.loss_curves import LossCurves
from lightning_optim.report.result import StageResult
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import apply_cut
from lightning_optim.surgery.select import find_network


@final
@dataclass(frozen=True, kw_only=True)
class Finished:
    """Finished stage: its folder, what was measured of it, and the losses that it was trained with, if it was."""

    kind: Kind
    folder: Path
    result: StageResult
    losses: LossCurves | None = None


@final
@dataclass(kw_only=True)
class Recipe:
    """Recipe: an ordered list of stages over one model and one data set.

    Every stage trains with a Trainer and callbacks of its own, and leaves weights, an ONNX file and its measurements in
    ``folder``. Random numbers are a function of (seed, stage, epoch), and a checkpoint is written after each epoch:
    a run that is killed anywhere goes on in the same folder to the same weights as an uninterrupted one.

    Args:
        stages: What to do, in order.
        make_module: Builds the LightningModule, seeded.
        data: The data set.
        folder: Where everything is written.
        seed: Seeds weights, order and augmentation.
        network: Name of the network in the LightningModule; ``None`` finds it.
        metrics: Names under which the module logs its accuracies.
        fallbacks: Whether what has no integer kernel may stay in floating point in the file of a stage for integers:
            ``"named"``, ``"refused"`` or a sequence of kernels, as for ``QATFakeQuant.export``.
        dynamic: Argument of the network's ``forward`` -> its dimensions that are open in every file beside the batch,
            each with a name, as for ``QATFakeQuant.export``.
        batch: The only batch that the files take; ``None`` opens it.
        console: Where progress is shown.

    Raises:
        ValueError: If ``dynamic`` names a dimension that cannot be open, or ``batch`` is below 1.
    """

    stages: Sequence[Stage]
    make_module: Callable[[], LightningModule]
    data: LightningDataModule
    folder: Path
    seed: int = 0
    network: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    fallbacks: Fallbacks = "named"
    dynamic: Dynamic | None = None
    batch: int | None = None
    console: Console = field(default_factory=Console)
    shapes: OpenShapes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.shapes = OpenShapes(dynamic=self.dynamic or {}, batch=self.batch)

    def run(self) -> list[Finished]:
        """Walk through the stages; those that are finished in ``folder`` are not done again.

        Raises:
            OrderError: If the order of the stages makes no sense; nothing has been written then.
        """
        check_order([stage.kind for stage in self.stages])
        check_fallbacks(self.fallbacks)
        check_stages(self.stages)
        seed_everything(self.seed, "model")
        module = self.make_module()
        finished: list[Finished] = []
        with RecipeProgress(len(self.stages), self.console, is_shown=is_first_process()) as display:
            for number, stage in enumerate(self.stages):
                folder = self._folder_of(number)
                display.begin(stage.name)
                if not (folder / "stage.json").is_file():
                    module = self._do(stage, folder, module, finished, display)
                elif stage.kind != "export":
                    stage.apply_settings(module)  # later stages inherit them
                    module = self._shaped_by(stage, folder, module, finished)
                    load_weights(folder / "weights.safetensors", module)
                if stage.kind == "search" and stage.weights == "scratch":
                    module = self._fresh(number, finished)
                result = StageResult.from_dict(_read_json(folder / "stage.json"))
                curves = folder / "losses.json"  # a stage that was finished by a version without them has none
                losses = LossCurves.from_dict(_read_json(curves)) if curves.is_file() else None
                finished.append(Finished(kind=stage.kind, folder=folder, result=result, losses=losses))
                display.done(stage.name, _line(result))
        return finished

    def _do(
        self, stage: Stage, folder: Path, module: LightningModule, finished: list[Finished], display: RecipeProgress
    ) -> LightningModule:
        if stage.kind == "export":
            self._publish(stage.name, finished[-1], folder)
            return module
        began = time.perf_counter()
        process_pace().remember()  # by the calmest of such moments it is told later whether files are timed in calm
        callbacks = self._callbacks_of(stage, finished)
        searcher = self._searcher_of(stage, callbacks, module)
        stage.apply_settings(module)
        if searcher is not None and stage.trial_epochs is not None:
            self._try_out(stage, folder, module, searcher, finished)
            losses, callbacks = LossRecorder().curves, []  # every trial had its own
        else:
            losses = self._fit(stage, folder, module, callbacks, display)
        display.measuring(stage.name)
        if searcher is not None:
            module = _picked(stage, folder, module, searcher)
            callbacks = [callback for callback in callbacks if not isinstance(callback, SearchingCallback)]
        digest = self._keep(folder, module, callbacks)
        make_trainer = lambda extra: stage.make_trainer(callbacks=[*callbacks, *extra], **QUIET)  # noqa: E731  # one use
        writer = StageWriter(callbacks=callbacks, fallbacks=self.fallbacks, shapes=self.shapes)
        path = folder / "model.onnx"
        result = evaluate(
            stage.name, make_trainer, module, self.data, writer, path, metrics=self.metrics, network=self.network
        )
        _barrier()
        if is_first_process():
            file = str(path.relative_to(self.folder))
            measured = replace(result, weights_sha256=digest, seconds=time.perf_counter() - began, file=file)
            write_json(folder / "losses.json", losses.to_dict())
            write_json(folder / "stage.json", measured.to_dict())
        _barrier()
        return module

    def _fit(
        self, stage: Stage, folder: Path, module: LightningModule, callbacks: list[Callback], display: RecipeProgress
    ) -> LossCurves:
        checkpoint = ModelCheckpoint(
            dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        own: list[Callback] = [EpochSeed(self.seed, stage.name), EpochProgress(display, stage.name), checkpoint]
        recorder = LossRecorder()
        trainer = stage.make_trainer(callbacks=[recorder, *callbacks, *own], **QUIET)
        last = folder / "last.ckpt"
        if last.is_file():
            check_checkpoint(last)
        seed_everything(self.seed, stage.name)
        try:
            trainer.fit(module, datamodule=self.data, ckpt_path=str(last) if last.is_file() else None)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise ArtefactError(f"{last} is of another model; remove it to begin its stage again") from error
        if trainer.interrupted:
            raise KeyboardInterrupt
        return recorder.curves

    def _try_out(
        self,
        stage: Stage,
        folder: Path,
        module: LightningModule,
        searcher: SearchingCallback,
        finished: Sequence[Finished],
    ) -> None:
        """Search by training architectures on their own, each with callbacks of its own beside the searching one."""

        def make_trainer(**keywords: Any) -> Trainer:
            made = self._callbacks_of(stage, finished)
            others = [callback for callback in made if not isinstance(callback, SearchingCallback)]
            return stage.make_trainer(callbacks=others, **keywords)

        TrialSearch(
            searcher=searcher,
            make_module=lambda: copy_model(module),
            make_trainer=make_trainer,
            data=self.data,
            folder=folder,
            epochs=stage.trial_epochs or 1,
        ).run()

    def _keep(self, folder: Path, module: LightningModule, callbacks: Sequence[Callback]) -> str:
        """Write what a later process needs to rebuild the module: what was cut, then its weights."""
        if not is_first_process():
            return ""
        prefix = find_network(module, self.network)[0]
        cut: dict[str, list[Any]] = {}
        for callback in callbacks:  # several have pruned different dimensions
            for name, cuts in callback.cut.items() if isinstance(callback, CuttingCallback) else ():
                cut.setdefault(f"{prefix}.{name}".lstrip("."), []).extend(cuts)
        if cut:
            save_cut(folder / "cut.pt", cut)
        return save_weights(folder / "weights.safetensors", module)

    def _publish(self, name: str, last: Finished, folder: Path) -> None:
        """Make the last stage's exported file the run's model; another's may take its place once all are measured."""
        if is_first_process():
            write_atomic(self.folder / "model.onnx", (last.folder / "model.onnx").read_bytes())
            write_json(folder / "stage.json", replace(last.result, name=name, seconds=0.0).to_dict())
        _barrier()

    def _network_of(self, name: str, finished: Sequence[Finished]) -> nn.Module:
        """Return the network that a finished stage has left, without its module."""
        module = self.make_module()
        for number, done in enumerate(finished):
            module = self._shaped_by(self.stages[number], done.folder, module, finished[:number])
            if done.result.name == name:
                load_weights(done.folder / "weights.safetensors", module)
                return find_network(module, self.network)[1]
        raise OrderError(f"no finished stage is named {name!r}; there are {[done.result.name for done in finished]}")

    def _callbacks_of(self, stage: Stage, finished: Sequence[Finished]) -> list[Callback]:
        return list(stage.make_callbacks(lambda name: self._network_of(name, finished)))

    def _searcher_of(
        self, stage: Stage, callbacks: Sequence[Callback], module: LightningModule
    ) -> SearchingCallback | None:
        searcher = searching_callback(stage, callbacks)
        if searcher is not None:
            give_example(searcher, stage, module, self.data, self.network)
        return searcher

    def _shaped_by(
        self, stage: Stage, folder: Path, module: LightningModule, finished: Sequence[Finished]
    ) -> LightningModule:
        """Return the module, as it was before a finished stage, in the shape in which that stage left it."""
        if stage.kind == "search":
            searcher = self._searcher_of(stage, self._callbacks_of(stage, finished), module)
            assert searcher is not None, "a search stage has a callback that searches"
            return extract_pick(module, folder, searcher)
        if (folder / "cut.pt").is_file():
            apply_cut(module, load_cut(folder / "cut.pt"))
        return module

    def _fresh(self, number: int, finished: Sequence[Finished]) -> LightningModule:
        """Return the module as it is after the search that is stage ``number``, with the weights of a new one."""
        seed_everything(self.seed, "model")
        module = self.make_module()
        for place, stage in enumerate(self.stages[: number + 1]):
            stage.apply_settings(module)
            module = self._shaped_by(stage, self._folder_of(place), module, finished[:place])
        return module

    def _folder_of(self, number: int) -> Path:
        return self.folder / "stages" / f"{number}-{self.stages[number].name}"


def _picked(stage: Stage, folder: Path, module: LightningModule, searcher: SearchingCallback) -> LightningModule:
    if is_first_process():
        keep_pick(folder, module, searcher)
    _barrier()
    picked = extract_pick(module, folder, searcher)
    if stage.trial_epochs is not None:
        load_weights(folder / BEST, picked)
    return picked


def _line(result: StageResult) -> str:
    return f"test accuracy {result.test_accuracy:.2%}  {result.parameters:,} parameters  {result.bytes / 1e3:,.0f} kB"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtefactError(f"cannot read {path}: {error}") from error
    return content


def _barrier() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
