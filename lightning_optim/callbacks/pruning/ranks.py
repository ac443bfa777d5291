"""What the ranks of a fit say together about pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch import Trainer
from torch import distributed
from torch.distributed import ProcessGroup

from lightning_optim.errors import ShrinkError

Entry = TypeVar("Entry")


def summed(counts: tuple[int, ...], group: ProcessGroup | None) -> tuple[int, ...]:
    """Counts of all ranks that hold parts of the weights."""
    if group is None:
        return counts
    device = torch.device("cpu" if distributed.get_backend(group) == "gloo" else "cuda")
    total = torch.tensor(counts, device=device)
    distributed.all_reduce(total, group=group)
    return tuple(total.tolist())


def of_rank_zero(
    trainer: Trainer, plan: Callable[[], tuple[dict[str, Entry], dict[str, str]]]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """A verified plan and what it refuses: batches differ between ranks, and so might what can be verified.

    Args:
        trainer: The trainer of this rank.
        plan: Makes the plan.

    Raises:
        ShrinkError: On every rank, as the first one alone would leave the others waiting.
    """
    found: tuple[dict[str, Entry], dict[str, str], str] = ({}, {}, "")
    if trainer.is_global_zero:
        try:
            found = (*plan(), "")
        except ShrinkError as error:
            found = ({}, {}, str(error))
    made, refused, reason = trainer.strategy.broadcast(found)
    if reason:
        raise ShrinkError(reason)
    return dict(made), refused
