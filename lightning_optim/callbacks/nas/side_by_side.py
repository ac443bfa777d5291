"""Candidates side by side: each rank judges architectures of its own, on the whole of the validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.lightning_private import with_sampler
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind

# What a module may call in its validation to talk to the other ranks.
_COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "barrier", "broadcast",
    "broadcast_object_list", "gather", "gather_object", "reduce", "reduce_scatter", "scatter", "send", "recv",
)  # fmt: skip

Item = TypeVar("Item")
Found = TypeVar("Found")


def whole_data(trainer: Trainer, dataloaders: Any) -> Any | None:
    """Return loaders of the whole data, from those of which each rank reads its share.

    Args:
        trainer: Of the fit.
        dataloaders: What it validates on.

    Returns:
        The loaders in the same structure; ``None`` where ranks cannot judge on their own: under another strategy than
        DDP, or where a loader's shares are not those of a ``DistributedSampler``, so that the whole is not known.
    """
    if strategy_kind(trainer) is not StrategyKind.DDP or trainer.world_size < 2:
        return None
    if isinstance(dataloaders, Mapping):
        parts = [whole_data(trainer, loader) for loader in dataloaders.values()]
        return None if None in parts else dict(zip(dataloaders, parts, strict=True))
    if isinstance(dataloaders, (list, tuple)):
        parts = [whole_data(trainer, loader) for loader in dataloaders]
        return None if None in parts else parts
    if not isinstance(dataloaders, DataLoader):
        return None
    if isinstance(dataloaders.sampler, DistributedSampler):
        return with_sampler(dataloaders, SequentialSampler(dataloaders.dataset))  # type: ignore[arg-type]  # it has a size
    return dataloaders if isinstance(dataloaders.sampler, SequentialSampler) else None


def own_trainer(trainer: Trainer, callbacks: Sequence[Callback]) -> Trainer:
    """Return a trainer of this rank alone, on its device and in the precision of another."""
    return Trainer(
        strategy=SingleDeviceStrategy(device=trainer.strategy.root_device),
        accelerator="cpu" if trainer.strategy.root_device.type == "cpu" else "auto",
        devices=1,
        num_nodes=1,
        plugins=[trainer.precision_plugin],
        callbacks=list(callbacks),
        limit_val_batches=trainer.limit_val_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class CollectiveCalledError(RuntimeError):
    """Signal that a module talks to the other ranks in its validation, who judge other architectures meanwhile."""


@contextmanager
def judging_alone(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Let a module's metrics be those of this rank, and give it back to its trainer and device afterwards.

    Raises:
        CollectiveCalledError: If the module calls a collective of ``torch.distributed`` itself.
    """
    metrics = [module for module in pl_module.modules() if is_instance_of(module, "Metric")]
    own = [dict(vars(metric)) for metric in metrics]
    for metric in metrics:
        vars(metric)["distributed_available_fn"] = _is_alone
    calls = {name: getattr(distributed, name) for name in _COLLECTIVES}
    for name in calls:
        setattr(distributed, name, partial(_refuse_call, name))
    try:
        yield
    finally:
        for name, call in calls.items():
            setattr(distributed, name, call)
        for metric, before in zip(metrics, own, strict=True):
            vars(metric)["distributed_available_fn"] = before.get("distributed_available_fn")
        pl_module.to(trainer.strategy.root_device)  # another trainer's teardown has taken it to the CPU
        pl_module.trainer = trainer


def _is_alone() -> bool:
    return False


def _refuse_call(name: str, *_: Any, **__: Any) -> None:
    raise CollectiveCalledError(name)


def shared_out(items: Sequence[Item], judge: Callable[[Item], Found]) -> list[Found]:
    """Judge items, each on one rank, and return on all of them what was found of all.

    Raises:
        CollectiveCalledError: If a rank has called the others meanwhile, on all of them.
        RuntimeError: If a rank has failed, on all of them, saying which and why.
    """
    rank, count = distributed.get_rank(), distributed.get_world_size()
    found: list[Found] = []
    failure, called = "", ""
    try:
        found = [judge(item) for item in items[rank::count]]
    except CollectiveCalledError as error:
        called = str(error)
    except Exception as error:  # the other ranks wait for this one, and must hear of it
        failure = f"rank {rank}: {type(error).__name__}: {error}"
    everything: list[Any] = [None] * count
    distributed.all_gather_object(everything, (found, failure, called))
    calls = [name for *_, name in everything if name]
    if calls:
        raise CollectiveCalledError(calls[0])
    failures = [text for _, text, _ in everything if text]
    if failures:
        raise RuntimeError(f"an architecture could not be judged on {'; '.join(failures)}")
    return [everything[place % count][0][place // count] for place in range(len(items))]
