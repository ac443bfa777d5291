"""Requirements of a supernet: of its space, of the module and of the strategy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_optim.callbacks.trainer.lightning_classes import is_instance_of
from lightning_optim.callbacks.trainer.lightning_private import averaged_model, ddp_settings, is_compiled
from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from lightning_optim.nas.space.base import SearchDimension


def checked_space(space: Mapping[str, SearchDimension]) -> dict[str, SearchDimension]:
    """Return the entries of a space.

    Raises:
        ValueError: If there is none.
    """
    entries = dict(space)
    if not entries:
        raise ValueError("space must say what may vary, got no entry; choose from lightning_optim.nas.space")
    return entries


def refuse_compiled(pl_module: LightningModule) -> None:
    """Refuse a module under ``torch.compile``.

    Raises:
        ValueError: Saying so.
    """
    has_compiled = any(type(module).__name__ == "OptimizedModule" for module in pl_module.modules())
    if has_compiled or is_compiled(pl_module):
        raise ValueError(
            "a supernet changes its path every step and would be compiled anew each time; "
            "train it uncompiled, and compile the extracted pick"
        )


def check_slices(trainer: Trainer, space: Mapping[str, SearchDimension]) -> None:
    """Refuse slices of weights of which each rank holds a part.

    Raises:
        ValueError: Naming the entry of the space.
    """
    slicing = [key for key, dimension in space.items() if dimension.slices_weights]
    if slicing and strategy_kind(trainer) is StrategyKind.SHARDED:
        raise ValueError(
            f"space[{slicing[0]!r}] takes slices of weights, but under {strategy_name(trainer)} each rank holds a part "
            "of every weight; use DDPStrategy, or choose whole operations only"
        )


def check_averages(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse an averaged copy that was made before the module became a supernet, in ``on_train_start``.

    Raises:
        ValueError: Naming the callback that keeps it.
    """
    count = len(list(pl_module.parameters()))
    others: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer
    for callback in others:
        average = averaged_model(callback)
        if average is not None and len(list(average.parameters())) != count:
            raise ValueError(
                f"{type(callback).__name__} has copied the module before NASSupernet added its candidates: list "
                f"NASSupernet before {type(callback).__name__}"
            )


def prepare_strategy(trainer: Trainer) -> None:
    """Let DDP look for what a step leaves unused, and refuse strategies that cannot train a supernet.

    Raises:
        ValueError: Naming the strategy or its setting.
    """
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
