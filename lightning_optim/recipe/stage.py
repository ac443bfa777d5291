"""One step of a recipe: a kind, and factories for what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_optim.errors import OrderError
from lightning_optim.recipe.order import Kind

Artefacts = Callable[[str], nn.Module]
"""Name of a finished stage -> its network, rebuilt from what the stage left on disk."""


@final
@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe.

    Args:
        name: Names the stage in the folder and the report.
        kind: What it does, for ``order``; ``"export"`` trains nothing.
        make_trainer: Builds the stage's Trainer from its callbacks and further keywords.
        make_callbacks: Builds the stage's callbacks when the stage begins.
        settings: Attributes of the LightningModule to set before the stage, such as its learning rate.
        needs: Names of earlier stages whose artefacts the callbacks use.
    """

    name: str
    kind: Kind
    make_trainer: Callable[..., Trainer]
    make_callbacks: Callable[[Artefacts], Sequence[Callback]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()

    def apply_settings(self, module: LightningModule) -> None:
        """Set the stage's attributes on ``module``.

        Raises:
            ValueError: If the module has no such attribute: it would be ignored.
        """
        for name, value in self.settings.items():
            if not hasattr(module, name):
                raise ValueError(
                    f"stage {self.name!r} sets {name!r}, which {type(module).__name__} does not have; "
                    f"remove it from the stage's settings, or name one of the module's own attributes"
                )
            setattr(module, name, value)


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse names that stand twice or are not there yet.

    Raises:
        OrderError: Naming the stage.
    """
    seen: list[str] = []
    for stage in stages:
        if stage.name in seen:
            raise OrderError(f"two stages are named {stage.name!r}; give each its own name")
        for need in stage.needs:
            if need not in seen:
                raise OrderError(
                    f"stage {stage.name!r} uses stage {need!r}, which does not come before it; before it come {seen}"
                )
        seen.append(stage.name)
