"""Stage of a recipe: a kind, and factories for what it needs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, final, get_args, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_optim.errors import OrderError
from lightning_optim.export.fallbacks import Fallbacks
from lightning_optim.export.onnx_file.open_shapes import Dynamic
from lightning_optim.recipe.order import Kind

QUIET: Mapping[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
"""Keywords of a Trainer that shows nothing of its own."""

Weights = Literal["scratch", "inherited"]

Artefacts = Callable[[str], nn.Module]
"""Name of a finished stage -> its network, rebuilt from what the stage left on disk."""


@runtime_checkable
class CuttingCallback(Protocol):
    """Callback that removes channels, and says which, so that a later process cuts the full-size module likewise."""

    @property
    def cut(self) -> Mapping[str, Any]:
        """What was physically kept: tensor of the network -> its cuts ``[dim, kept positions, original size]``."""
        ...


@runtime_checkable
class ExportingCallback(Protocol):
    """Callback that writes a stage's network in a form of its own, such as integer kernels."""

    def export(
        self,
        path: Path,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        fallbacks: Fallbacks,
        /,
        *,
        dynamic: Dynamic | None,
        batch: int | None,
    ) -> object:
        """Write the network to ``path``.

        Args:
            path: The ONNX file to write.
            model: The LightningModule.
            args: Example positional inputs of the network.
            kwargs: Example keyword inputs.
            fallbacks: Whether what has no integer kernel may stay in floating point.
            dynamic: Argument of the network's ``forward`` -> its dimensions that are open beside the batch.
            batch: The only batch that the file takes; ``None`` opens it.
        """
        ...


@runtime_checkable
class KeepingCallback(Protocol):
    """Callback that keeps what a network has answered, beyond its fit."""

    def keep_nothing(self) -> None:
        """Neither read what is kept nor add to it from here on: the networks to come stand for others."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Stage:
    """Stage of a recipe.

    Args:
        name: Names the stage in the folder and the report.
        kind: What it does, for ``order``; ``"export"`` trains nothing.
        make_trainer: Builds the stage's Trainer from its callbacks and further keywords.
        make_callbacks: Builds the stage's callbacks when the stage begins.
        settings: Attributes of the LightningModule, or entries of its ``hparams``, to set before the stage, such as its
            learning rate.
        needs: Names of earlier stages whose artefacts the callbacks use.
        weights: Of a search, what its pick begins with in the next stage: ``"scratch"`` is the weights of a fresh
            module, ``"inherited"`` those that were trained while it was searched.
        trial_epochs: Of a search, epochs for which each architecture is trained on its own; ``None`` trains a supernet.

    Raises:
        ValueError: If ``weights`` is neither, ``trial_epochs`` below 1, or one of them is given to another stage than a
            search.
    """

    name: str
    kind: Kind
    make_trainer: Callable[..., Trainer]
    make_callbacks: Callable[[Artefacts], Sequence[Callback]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()
    weights: Weights = "scratch"
    trial_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise ValueError(
                f"weights of stage {self.name!r} must be one of {', '.join(get_args(Weights))}, got {self.weights!r}"
            )
        if self.weights == "inherited" and self.kind != "search":
            raise ValueError(
                f"weights='inherited' are those of a search, got it in stage {self.name!r} of kind {self.kind!r}, "
                "which goes on with its own: leave it out"
            )
        if self.trial_epochs is not None and (self.trial_epochs < 1 or self.kind != "search"):
            raise ValueError(
                f"trial_epochs are those of a search stage and at least 1, got {self.trial_epochs} in stage "
                f"{self.name!r} of kind {self.kind!r}"
            )

    def apply_settings(self, module: LightningModule) -> None:
        """Set the stage's attributes and hyperparameters on ``module``.

        Raises:
            ValueError: If the module has no such attribute: it would be ignored.
        """
        for name, value in self.settings.items():
            is_attribute, is_hyperparameter = hasattr(module, name), name in module.hparams
            if not (is_attribute or is_hyperparameter):
                raise ValueError(
                    f"stage {self.name!r} sets {name!r}, which {type(module).__name__} does not have; "
                    f"remove it from the stage's settings, or name one of the module's own attributes"
                )
            if is_attribute:
                setattr(module, name, value)
            if is_hyperparameter:  # of save_hyperparameters
                module.hparams[name] = value


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse stages of the same name, stages that use one that does not come before them, and untrained picks.

    Raises:
        OrderError: If there are some; the message names the stage.
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
    for stage, following in itertools.pairwise(stages):
        if stage.kind == "search" and stage.weights == "scratch" and following.kind != "train":
            raise OrderError(
                f"stage {following.name!r} cannot come right after {stage.name!r}: its pick begins from scratch; put a "
                f"train stage between them, or set weights='inherited' in {stage.name!r}"
            )


def is_first_process() -> bool:
    """Whether this process writes: rank 0 of the first machine, also before any process group runs."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
