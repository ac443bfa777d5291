"""Messages of pruning: one line about each step, with what it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_optim.callbacks.trainer.messages import tell
from lightning_optim.surgery.parametrized import layer_name
from lightning_optim.surgery.shard import local

_NAMED = 5


@final
class StepMessages:
    """Messages about the steps of one network's pruning.

    Args:
        name: Of the callback.
        unit: What the structure counts, such as ``Channel``.
    """

    def __init__(self, name: str | None, unit: str) -> None:
        self._prefix = "PruningScheduler" if name is None else f"PruningScheduler {name!r}"
        self._unit = unit
        self._gone: Mapping[str, int] | None = None

    def tell(self, trainer: Trainer, alive: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        """Tell what a step has taken; nothing, if it took nothing.

        Args:
            trainer: Rank 0 of it speaks.
            alive: Pool -> the entries that are kept, of all that there were.
            parameters: Of the network, as they are now.
        """
        gone = {pool: int((~keep).sum()) for pool, keep in alive.items()}
        if gone != (self._gone or dict.fromkeys(gone, 0)):
            tell(trainer, f"{self._prefix}: {self._text(gone, alive)}; {_left(parameters)}")
        self._gone = gone

    def _text(self, gone: Mapping[str, int], alive: Mapping[str, Tensor]) -> str:
        before = 0 if self._gone is None else sum(self._gone.values())
        taken = {pool: count for pool, count in gone.items() if count}
        pools = [f"{layer_name(pool) or pool} {count} of {alive[pool].numel()}" for pool, count in taken.items()]
        others = [f"{len(pools) - _NAMED} more"] if len(pools) > _NAMED else []
        total, size = sum(gone.values()), sum(keep.numel() for keep in alive.values())
        since = "" if self._gone is None else f", {total - before:+,} in this step"
        return f"{self._unit.lower()}: {total:,} of {size:,} gone{since} ({', '.join(pools[:_NAMED] + others)})"


def _left(parameters: Mapping[str, nn.Parameter]) -> str:
    left = f"{sum(parameter.numel() for parameter in parameters.values()):,} parameters are left"
    if any(local(parameter) is not parameter for parameter in parameters.values()):
        return left  # of a sharded one each rank sees a part
    return f"{left}, {sum(int((parameter == 0).sum()) for parameter in parameters.values()):,} of them zero"
