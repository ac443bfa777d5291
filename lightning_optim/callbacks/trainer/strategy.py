"""Strategy of a Trainer: which kind it is, whatever class of its own a user derives from Lightning's."""

from __future__ import annotations

from enum import Enum

from lightning.pytorch import Trainer

from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.lightning_private import spawns_processes

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class StrategyKind(Enum):
    """Kinds of strategy, by where the weights are.

    Attributes:
        SINGLE: One process holds the weights; also every strategy that is of none of the other kinds.
        DDP: Each process holds all weights, behind a reducer that averages the gradients.
        SPAWN: As ``DDP``, but the processes end with the fit, and weights come back by name and shape.
        SHARDED: Each process holds a part of every weight (FSDP, FSDP2, DeepSpeed).
    """

    SINGLE = "single"
    DDP = "ddp"
    SPAWN = "spawn"
    SHARDED = "sharded"


def strategy_kind(trainer: Trainer) -> StrategyKind:
    """Return the kind of a trainer's strategy, read from all classes that the strategy derives from."""
    strategy = trainer.strategy
    if is_instance_of(strategy, *_SHARDED):
        return StrategyKind.SHARDED  # before DDP: DeepSpeedStrategy derives from DDPStrategy
    if spawns_processes(trainer):
        return StrategyKind.SPAWN
    return StrategyKind.DDP if is_instance_of(strategy, "DDPStrategy") else StrategyKind.SINGLE


def strategy_name(trainer: Trainer) -> str:
    """Return the name of the strategy's own class, for messages."""
    return type(trainer.strategy).__name__
