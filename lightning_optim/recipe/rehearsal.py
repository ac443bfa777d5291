"""Rehearsal: the first batch of every stage, before anything is written: a mistake in the last stage shows at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_optim.export.fallbacks import check_fallbacks
from lightning_optim.export.onnx_file.open_shapes import OpenShapes
from lightning_optim.recipe.determinism import seed_everything
from lightning_optim.recipe.evaluate import StageWriter, first_call, metric_of
from lightning_optim.recipe.order import check_order
from lightning_optim.recipe.run import Recipe
from lightning_optim.recipe.search_stage import SearchingCallback, give_example, searching_callback
from lightning_optim.recipe.stage import QUIET, KeepingCallback, Stage, check_stages
from lightning_optim.surgery.select import find_network


def rehearse(recipe: Recipe) -> None:
    """Train every stage's first batch on a fresh module, and throw the result away.

    Wrong names, values, files, folders and teachers are found here. An untrained module stands in for what an earlier
    stage will leave, so mistakes that only a trained or smaller module shows are found later. No random number of
    the run changes: each stage seeds its own.

    Args:
        recipe: What will be run.

    Raises:
        OrderError: If the order of the stages makes no sense.
        LightningOptimError: Whatever else a stage refuses.
    """
    check_order([stage.kind for stage in recipe.stages])
    check_fallbacks(recipe.fallbacks)
    check_stages(recipe.stages)
    stages = [stage for stage in recipe.stages if stage.kind != "export"]
    for stage in stages:
        _rehearse_fit(stage, recipe)
    _rehearse_metrics(stages[0], recipe)
    if recipe.shapes != OpenShapes():
        _rehearse_shapes(stages[0], recipe)


def _rehearse_fit(stage: Stage, recipe: Recipe) -> None:
    seed_everything(recipe.seed, "rehearsal", stage.name)
    module = recipe.make_module()
    callbacks = list(stage.make_callbacks(lambda _: _untrained(recipe)))
    searcher = searching_callback(stage, callbacks)
    if searcher is not None:
        give_example(searcher, stage, module, recipe.data, recipe.network)
        if stage.trial_epochs is not None:  # the callback says what may vary, and is in no Trainer
            searcher.convert(module)
            module = recipe.make_module()
            callbacks = [callback for callback in callbacks if not isinstance(callback, SearchingCallback)]
    for callback in callbacks:
        if isinstance(callback, KeepingCallback):
            callback.keep_nothing()
    stage.apply_settings(module)
    trainer = stage.make_trainer(callbacks=[*callbacks, _StopAfterFirstBatch()], num_sanity_val_steps=0, **_QUIET)
    try:
        trainer.fit(module, datamodule=recipe.data)
    except _RehearsedError:
        return
    raise ValueError(
        f"stage {stage.name!r} would train nothing: give its trainer at least one epoch and one batch, "
        "or leave the stage out of the recipe"
    )


def _rehearse_metrics(stage: Stage, recipe: Recipe) -> None:
    module = recipe.make_module()
    trainer = stage.make_trainer(callbacks=[], limit_val_batches=1, limit_test_batches=1, **_QUIET)
    validated = trainer.validate(module, datamodule=recipe.data, verbose=False)
    metric_of(validated, recipe.metrics.validation, "metrics.validation")
    tested = trainer.test(module, datamodule=recipe.data, verbose=False)
    metric_of(tested, recipe.metrics.test, "metrics.test")


def _rehearse_shapes(stage: Stage, recipe: Recipe) -> None:
    """Write the file of an untrained network: code that takes a size for a number is found before it is trained."""
    module = recipe.make_module()
    live = find_network(module, recipe.network)[1]

    def make_trainer(extra: list[Callback]) -> Trainer:
        return stage.make_trainer(callbacks=extra, limit_val_batches=1, **_QUIET)

    example = next(recipe.shapes.batches_of(first_call(make_trainer, module, recipe.data, live)))
    with TemporaryDirectory() as folder:
        StageWriter(callbacks=(), shapes=recipe.shapes).write(Path(folder) / "model.onnx", module, live, example)


def _untrained(recipe: Recipe) -> nn.Module:
    return find_network(recipe.make_module(), recipe.network)[1]


_QUIET: Mapping[str, Any] = {**QUIET, "enable_checkpointing": False}


class _RehearsedError(Exception):
    """Signal that the stage has begun without an error."""


@final
class _StopAfterFirstBatch(Callback):
    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        raise _RehearsedError
