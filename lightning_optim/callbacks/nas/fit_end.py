"""Search at the end of a fit, for whom a configuration is all that is said."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Trainer

from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.lightning_private import spawns_processes
from lightning_optim.callbacks.trainer.messages import tell
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from lightning_optim.nas.bounds import find_broken_bound
from lightning_optim.nas.selection import Selection
from lightning_optim.nas.supernet import Supernet
from lightning_optim.report.search_files import write_findings
from lightning_optim.report.search_findings import SearchFindings
from lightning_optim.search.strategy.base import Strategy

SearchAt = Literal["fit_end", "call"]

_BY_HAND = "or set search_at='call' and call search yourself"


def checked_moment(search_at: SearchAt | None, *, is_configured: bool) -> SearchAt:
    """Return when a search happens: where nothing is said, at the end of the fit if a search was configured.

    Raises:
        ValueError: If there is no such moment.
    """
    if search_at is None:
        return "fit_end" if is_configured else "call"
    if search_at not in get_args(SearchAt):
        raise ValueError(f"search_at must be 'fit_end', 'call' or None, got {search_at!r}")
    return search_at


def check_before_fit(trainer: Trainer, selection: Selection) -> None:
    """Refuse a fit after which no search could be made.

    Raises:
        ValueError: Saying what is missing.
    """
    if spawns_processes(trainer):
        raise ValueError(
            "a search at the end of the fit needs processes that outlive it: take another strategy than "
            f"ddp_spawn, {_BY_HAND}"
        )
    if strategy_kind(trainer) is StrategyKind.SHARDED:
        raise ValueError(
            f"the search at the end of the fit copies the network, but under {strategy_name(trainer)} each rank holds "
            f"a part of every weight; use DDPStrategy, {_BY_HAND} on the whole weights"
        )
    if not trainer.enable_validation:
        raise ValueError(
            f"the search at the end of the fit compares {selection.monitor!r}, but this fit validates nothing: "
            f"give it validation data and a validation_step, {_BY_HAND}"
        )


def check_data(trainer: Trainer, num_batches: int) -> None:
    """Refuse training data of which no batches can be taken for the batch-norm statistics.

    Raises:
        ValueError: If there are several loaders.
    """
    if num_batches and isinstance(trainer.train_dataloader, (Mapping, Sequence)):
        raise ValueError(
            "the search at the end of the fit takes batches for batch-norm statistics from one training loader, got a "
            f"{type(trainer.train_dataloader).__name__} of them: set selection.recalibration_batches to 0, {_BY_HAND}"
        )


def check_search(trainer: Trainer, supernet: Supernet, strategy: Strategy, selection: Selection) -> None:
    """Refuse a search that could not find anything, before its supernet is trained.

    Raises:
        ValueError: If the strategy cannot rank by so many objectives, or a bound excludes the whole space.
    """
    strategy.start(supernet.space, 0, num_scores=len(selection.objectives))
    # A latency differs from rank to rank, and all of them must find the same.
    broken = trainer.strategy.broadcast(find_broken_bound(supernet, selection) if trainer.is_global_zero else None)
    if broken is not None:
        raise ValueError(broken)


def check_monitors(trainer: Trainer, selection: Selection) -> None:
    """Refuse metrics that validation does not log, as soon as there has been one.

    The validation before the first step counts where it logs anything: many modules log nothing then.

    Raises:
        ValueError: Naming what is logged.
    """
    logged = trainer.callback_metrics
    if trainer.sanity_checking and not logged:
        return
    for entry in selection.metrics.values():
        if entry.monitor not in logged:
            raise ValueError(
                f"the search at the end of the fit compares {entry.monitor!r}, but the module logs {sorted(logged)}: "
                f"set selection.monitor, or the entry of selection.measures, to one of them, {_BY_HAND}"
            )


@contextmanager
def within_fit(trainer: Trainer) -> Iterator[None]:
    """Let a trainer validate before its fit has returned; afterwards it is in the fit, with the metrics of the fit."""
    state, before = dataclasses.replace(trainer.state), [dict(metrics) for metrics in _metrics(trainer)]
    try:
        yield
    finally:
        trainer.state.fn, trainer.state.status, trainer.state.stage = state.fn, state.status, state.stage
        for metrics, old in zip(_metrics(trainer), before, strict=True):
            metrics.clear()
            metrics.update(old)


def _metrics(trainer: Trainer) -> list[dict[str, Any]]:
    return [trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics]


def log_after_fit(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Give metrics to the trainer's loggers, and to who reads ``callback_metrics`` after the fit."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step)


def progress_path(trainer: Trainer, identity: Mapping[str, Any]) -> Path | None:
    """Where the progress of a search is kept, beside the checkpoints of its fit; ``None`` if it saves none.

    Args:
        trainer: The fit's.
        identity: What makes a search the same search: another one begins anew, in another file.
    """
    folder = _folder(trainer)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return None if folder is None else folder / f"nas_search_{trainer.strategy.broadcast(digest)[:12]}.json"


def _folder(trainer: Trainer) -> Path | None:
    checkpoint = trainer.checkpoint_callback
    is_dry: bool = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by the trainer
    if is_dry or not is_instance_of(checkpoint, "ModelCheckpoint"):
        return None
    return Path(trainer.strategy.broadcast(checkpoint.dirpath))  # type: ignore[union-attr]  # known by its name


def save_after_fit(trainer: Trainer, name: str, findings: SearchFindings) -> None:
    """Save a checkpoint that knows the pick beside those of the fit, if it saves any; no file is written over.

    Args:
        trainer: The fit's.
        name: Of the checkpoint, without its suffix.
        findings: What was found, which is written beside it as JSON and as a plot.
    """
    folder = _folder(trainer)
    if folder is None:
        return
    names = itertools.chain([name], (f"{name}-v{number}" for number in itertools.count(1)))
    free = next(path for path in (folder / f"{name}.ckpt" for name in names) if not _is_taken(path))
    path: Path = trainer.strategy.broadcast(free)
    trainer.save_checkpoint(path)
    if trainer.is_global_zero:
        written = write_findings(findings, path.with_suffix(".json"))
        listed = " and ".join(file.name for file in written)
        tell(trainer, f"the pick and its weights are kept in {path}, what else was found in {listed} beside it")


def _is_taken(path: Path) -> bool:
    return any(path.with_suffix(suffix).exists() for suffix in (".ckpt", ".json", ".svg"))
