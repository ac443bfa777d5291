"""Search stage of a recipe: its pick becomes the module that later stages train."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from lightning_optim.atomic import write_atomic
from lightning_optim.errors import ArtefactError, OrderError
from lightning_optim.nas.description import describe_search
from lightning_optim.nas.result import SearchResult
from lightning_optim.nas.selection import Selection
from lightning_optim.nas.supernet import Supernet
from lightning_optim.recipe.artefact import BEGIN_AGAIN, write_json
from lightning_optim.recipe.evaluate import first_call
from lightning_optim.recipe.stage import QUIET, Stage
from lightning_optim.report.search_findings import SearchFindings
from lightning_optim.search.strategy.base import Strategy
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.select import find_network

PICK, FOUND = "architecture.yaml", "search.json"


@runtime_checkable
class SearchingCallback(Protocol):
    """Callback that searches an architecture at the end of its fit."""

    strategy: Strategy
    selection: Selection
    seed: int
    result: SearchResult | None
    example: Any

    def convert(self, pl_module: LightningModule) -> Supernet:
        """Turn a module into a supernet; a second call changes nothing."""
        ...

    def extract(self, pl_module: LightningModule, architecture: Mapping[str, int] | None = None) -> nn.Module:
        """Return one architecture as a plain copy of a module, with the weights that it has there."""
        ...


def searching_callback(stage: Stage, callbacks: Sequence[Callback]) -> SearchingCallback | None:
    """The callback of a search stage that searches; ``None`` in any other stage.

    Raises:
        OrderError: If a search stage has none or several of them.
    """
    if stage.kind != "search":
        return None
    found = [callback for callback in callbacks if isinstance(callback, SearchingCallback)]
    if len(found) != 1:
        raise OrderError(
            f"search stage {stage.name!r} needs one callback that searches at the end of its fit, such as NASSupernet, "
            f"got {len(found)}"
        )
    return found[0]


def give_example(
    searcher: SearchingCallback, stage: Stage, module: LightningModule, data: LightningDataModule, network: str | None
) -> None:
    """Give a callback an example of what goes into the network, from the data, where neither it nor the module has one.

    Raises:
        ArtefactError: If the validation loop never calls the network.
    """
    if searcher.example is not None or module.example_input_array is not None:
        return

    def make_trainer(extra: list[Callback]) -> Trainer:
        return stage.make_trainer(callbacks=extra, limit_val_batches=1, enable_checkpointing=False, **QUIET)

    searcher.example = Inputs(*first_call(make_trainer, module, data, find_network(module, network)[1]))


def keep_pick(folder: Path, module: LightningModule, searcher: SearchingCallback) -> None:
    """Write the pick's choices as YAML, and everything that was evaluated as JSON.

    Raises:
        OrderError: If the stage ended without a search.
    """
    if searcher.result is None:
        raise OrderError(
            f"the search stage in {folder} ended without a search: set search_at='fit_end' in its callback"
        )
    space = searcher.convert(module).space
    choices = space.options_of(searcher.result.pick.architecture)
    write_atomic(folder / PICK, yaml.safe_dump(choices, sort_keys=False).encode())
    write_json(folder / FOUND, describe_search(space, searcher.selection, searcher.result))


def read_findings(folder: Path) -> SearchFindings:
    """Read what a finished search stage has found.

    Raises:
        ArtefactError: If the file is missing or broken.
    """
    try:
        content = json.loads((folder / FOUND).read_text())
    except (OSError, ValueError) as error:
        raise ArtefactError(f"cannot read {folder / FOUND}: {error}; {BEGIN_AGAIN}") from error
    return SearchFindings.from_dict(content)


def extract_pick(module: LightningModule, folder: Path, searcher: SearchingCallback) -> LightningModule:
    """Return the pick of a finished search stage, made of a module as it was before that stage.

    Raises:
        ArtefactError: If the file of its choices is broken, or of another space.
    """
    path = folder / PICK
    try:
        options = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArtefactError(f"cannot read {path}: {error}; {BEGIN_AGAIN}") from error
    if not isinstance(options, dict):
        raise ArtefactError(f"{path} holds no choices by name; {BEGIN_AGAIN}")
    try:
        architecture = searcher.convert(module).space.from_options(options)
    except ValueError as error:
        raise ArtefactError(f"{path} is of another space: {error}; {BEGIN_AGAIN}") from error
    picked = searcher.extract(module, architecture)
    assert isinstance(picked, LightningModule), "the copy of a LightningModule"
    return picked
