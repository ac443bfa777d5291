"""Private names of Lightning: all that this package uses, tried on Lightning 2.6.6.

No other file reads one, so that after a new release of Lightning one file is to be compared with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import _update_dataloader
from torch import nn
from torch.utils.data import DataLoader, Sampler

from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of

EARLY_STOPPING_CHECK = "_run_early_stopping_check"
"""Method of ``EarlyStopping`` in which it judges; users call it from hooks of their own, as Lightning's docs show."""


def compiler_of(pl_module: LightningModule) -> Callable[..., Any] | None:
    """Return what compiles the frames of a LightningModule that was compiled as a whole; ``None`` if it was not.

    The Trainer takes the wrapper of ``torch.compile`` off, and leaves only this trace of it.
    """
    context: dict[str, Any] | None = pl_module._compiler_ctx
    return None if context is None else context["dynamo_ctx"].callback


def is_compiled(pl_module: LightningModule) -> bool:
    """Whether a LightningModule was compiled as a whole."""
    return pl_module._compiler_ctx is not None


def transfer_batch(pl_module: LightningModule, batch: Any) -> Any:
    """Bring a batch to the module's device as a loop does, through all three transfer hooks of the user."""
    return pl_module._apply_batch_transfer_handler(pl_module._on_before_batch_transfer(batch))


def train_source(trainer: Trainer) -> object:
    """Return what gives a fit its training data, by a method ``dataloader``; valid from ``setup`` on."""
    return trainer.fit_loop._data_source


def is_validation_due(trainer: Trainer) -> bool:
    """Whether the fit's own rule asks for a validation after the batch that came last."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def averaged_model(callback: object) -> nn.Module | None:
    """Return the averaged copy of the LightningModule that a callback keeps (EMA, SWA); ``None`` if it keeps none."""
    average = vars(callback).get("_average_model")
    if isinstance(average, torch.optim.swa_utils.AveragedModel):
        return average.module
    return average if isinstance(average, nn.Module) else None


def ddp_settings(trainer: Trainer) -> dict[str, Any] | None:
    """Return the keywords with which DDP will wrap the module; ``None`` under strategies without that wrapper.

    A change of the dictionary takes effect if it is made in ``setup``, before the wrapper is built.
    """
    settings: dict[str, Any] | None = vars(trainer.strategy).get("_ddp_kwargs")
    return settings


def with_sampler(dataloader: DataLoader[Any], sampler: Sampler[Any]) -> DataLoader[Any]:
    """Return a loader like another, of the same class and settings, that reads in another order."""
    return _update_dataloader(dataloader, sampler)


def spawns_processes(trainer: Trainer) -> bool:
    """Whether the fit runs in processes that ``multiprocessing`` starts for it and that end with it."""
    return is_instance_of(trainer.strategy.launcher, "_MultiProcessingLauncher")


def skips_backward(trainer: Trainer) -> bool:
    """Whether the fit runs forward passes alone, as stochastic weight averaging does for batch-norm statistics."""
    return trainer.fit_loop._skip_backward


def blocked_sync(trainer: Trainer) -> AbstractContextManager[Any]:
    """Context in which a training step leaves the reducer of DDP alone."""
    strategy: Any = trainer.strategy
    return strategy.block_backward_sync() if is_instance_of(strategy, "ParallelStrategy") else nullcontext()


@functools.cache
def own_attributes() -> frozenset[str]:
    """Names of the attributes that Lightning itself gives a LightningModule."""
    return frozenset(vars(LightningModule()))


def callbacks_of_new_trainer() -> Sequence[Callback]:
    """Return the callbacks that the Trainer which is being built has so far; none if no Trainer is.

    They are in the caller's own list: Lightning adds to it what it was not given.
    """
    frame = inspect.currentframe()
    while frame is not None:
        builder = frame.f_locals.get("self")
        if is_instance_of(builder, "_CallbackConnector"):
            callbacks: Sequence[Callback] = builder.trainer.callbacks  # type: ignore[union-attr]  # known by its name
            return callbacks
        frame = frame.f_back
    return ()


def training_metrics(trainer: Trainer) -> dict[str, bool]:
    """Return what the fit logs in training, by name: whether its value is an epoch's, or else a batch's.

    What is both, under one name, counts as an epoch's.
    """
    logged: dict[str, bool] = {}
    for result in trainer.fit_loop.epoch_loop._results.result_metrics:
        meta = result.meta
        if meta.on_step:
            logged[meta.forked_name(on_step=True)] = False
        if meta.on_epoch:
            logged[meta.forked_name(on_step=False)] = logged[meta.name] = True
    return logged
