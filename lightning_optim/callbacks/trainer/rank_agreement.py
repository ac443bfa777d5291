"""Agreement of ranks: a job goes on only if all of its ranks are about to do the same."""

from __future__ import annotations

import hashlib
import re

import torch
from lightning.pytorch import Trainer
from torch import distributed

from lightning_optim.errors import RankMismatchError


def check_ranks_agree(trainer: Trainer, value: object, what: str) -> None:
    """Compare a hash of ``value`` across ranks; a single process compares nothing.

    Args:
        trainer: The trainer of this rank.
        value: Anything whose ``repr`` is the same wherever the value is.
        what: What is compared, for the message.

    Raises:
        RankMismatchError: If a rank holds another value, or the process group is not of the trainer's size.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        if trainer.world_size > 1:
            raise RankMismatchError(f"the trainer counts {trainer.world_size} ranks, but no process group is running")
        return
    group_size = distributed.get_world_size()
    if group_size != trainer.world_size:
        raise RankMismatchError(
            f"the trainer counts {trainer.world_size} ranks, the process group {group_size}: "
            "was it left over from an earlier job of the same process?"
        )
    # The repr of an object that defines none holds its address, which differs between ranks.
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    digest = hashlib.sha256(text.encode()).digest()[:8]
    mine = torch.tensor(
        int.from_bytes(digest, "big", signed=True), dtype=torch.int64, device=trainer.strategy.root_device
    )
    everyone = [torch.zeros_like(mine) for _ in range(group_size)]
    distributed.all_gather(everyone, mine)
    odd = [rank for rank, other in enumerate(everyone) if int(other) != int(everyone[0])]
    if odd:
        raise RankMismatchError(
            f"ranks disagree on {what}: {odd} differ from rank 0; give every rank the same configuration and seed"
        )
