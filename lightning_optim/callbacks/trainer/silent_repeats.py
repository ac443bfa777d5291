"""Silence of training steps that run again for one batch: what they log and print is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule

from lightning_optim.callbacks.trainer.lightning_private import is_compiled
from lightning_optim.surgery.passes import is_repeating
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.torch_private import never_compiled


def silence_repeats(patches: Patches, pl_module: LightningModule) -> None:
    """Let a module log and print only in passes that do not repeat another one.

    Args:
        patches: Takes the patches of its methods.
        pl_module: The module.
    """
    once = never_compiled(_once) if is_compiled(pl_module) else _once
    for method in ("log", "print"):  # log_dict comes to log
        patches.wrap(pl_module, method, once)


def _once(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    if not is_repeating():
        original(*args, **kwargs)
